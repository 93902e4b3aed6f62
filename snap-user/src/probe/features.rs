//! What of the probes this kernel offers to this user, for `ksnap doctor`.
