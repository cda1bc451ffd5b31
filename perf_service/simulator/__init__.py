"""A simulated engine that speaks the dialects of vLLM, SGLang and TGI, and a load generator.

The same core (``core``) runs in real time behind HTTP (``server``) and on a virtual clock (``virtual``).
It knows nothing of analysis: it only has flags and physics.
"""
