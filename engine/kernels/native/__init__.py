"""C++ sources of the CPU kernels; `engine.kernels.build` compiles them, nothing here is imported."""
