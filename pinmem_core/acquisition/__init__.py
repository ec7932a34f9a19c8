"""From a dataset's sites to raw files on disk: terms, logins, downloads, archives."""
