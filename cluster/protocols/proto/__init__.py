"""The gRPC services: `.proto` files, and what `python -m scripts.generate_protos` makes of them."""
