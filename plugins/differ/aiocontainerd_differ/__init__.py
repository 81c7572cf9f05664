"""The walking differ: layers to file trees and back (facts/core 8)."""
