//! Plan what to put back, then put it back.
