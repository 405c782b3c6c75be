"""Forward processes, the preconditioned denoiser, losses, guidance and samplers.

A forward process is x_t = alpha(t) x0 + sigma(t) eps. The network never knows which: it sees z = x_t / alpha(t) =
x0 + s eps and the noise-to-signal ratio s = sigma(t) / alpha(t). Data is normalised to sigma_data = 1.
"""
