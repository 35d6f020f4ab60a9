//! Has the copies of `golden/` inside the program made anew when a file there comes or goes, and says how it is linked.

fn main() {
    println!("cargo::rerun-if-changed=../golden");
    // At a fixed address. A guest starts this program some seven times for one scenario, and each start of one that may lie
    // anywhere first writes 50,000 pointers on 200 pages, each of which is a fault.
    println!("cargo::rustc-link-arg-bin=testbed=-no-pie");
}
