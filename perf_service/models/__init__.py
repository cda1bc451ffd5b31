"""The nouns of the service as frozen dataclasses and enums: no I/O, no gRPC, no clock."""
