//! Which pages changed since the last epoch?
