"""The wire: message codec, binding of services to methods, gRPC and ttrpc front ends and clients."""
