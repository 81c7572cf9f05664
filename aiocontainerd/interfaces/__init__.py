"""The contract of every plugin kind, one file each: prose on top, then the Protocol."""
