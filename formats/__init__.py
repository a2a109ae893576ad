"""File formats: pack, unpack, and the metadata each reader wants."""
