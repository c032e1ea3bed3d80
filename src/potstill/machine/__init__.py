"""Where numbers are computed: device, precision, threads, chunks, compiled code, the CPU kernels."""
