//! `victim NAME [ARGS]`: one program for each kind of kernel state that a snapshot must survive.
//!
//! See [`tests::victim`] for the names, and for the line protocol on stdin and stdout.

fn main() {
    tests::victim::main()
}
