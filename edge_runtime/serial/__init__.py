"""The gateway's side of the serial protocol (docs/serial.md): wire, frames, link, a core that computes elsewhere."""
