"""Every file format of a results folder: one module owns each, with a schema number. No torch."""
