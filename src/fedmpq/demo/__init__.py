"""The whole system on one machine: a broker, a coordinator and four device processes with memory limits in bytes."""
