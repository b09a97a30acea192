# Toolchain of Debian's g++-aarch64-linux-gnu. Not zig: its C++ library lays out std::string_view, which the runtime's
# interface passes by value, in another order than the one that the executorch wheels were built with.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
