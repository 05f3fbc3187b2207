//! A new migration must compile the crate anew: they are embedded into it.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
