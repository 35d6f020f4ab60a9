//! Has the copies of `golden/` inside the program made anew when a file there comes or goes.

fn main() {
    println!("cargo::rerun-if-changed=../golden");
}
