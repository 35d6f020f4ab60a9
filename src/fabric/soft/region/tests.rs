//! The invariants of registered memory, tried with threads and without sockets, so that Miri can watch.

use std::io::Write;
use std::sync::Barrier;
use std::thread;

use super::*;

const ALL: Access = Access { local_write: true, remote_read: true, remote_write: true };
const SIZE: usize = 64;
/// Miri is a thousand times slower.
const ROUNDS: usize = if cfg!(miri) { 20 } else { 5000 };

fn table() -> Arc<Table> {
    Arc::new(Table::new(1000))
}

fn place(memory: &mut DomainMemory, stag: Stag, byte: u8) -> Result<(), Denied> {
    memory.sink(Reach::Remote, stag, 0, SIZE, &mut |bytes| bytes.fill(byte))
}

/// The region's bytes by a lease, as they leave.
fn lease(memory: &mut DomainMemory, stag: Stag) -> Result<Option<Vec<u8>>, Denied> {
    Ok(memory.fetch(Reach::Remote, stag, 0, SIZE, true)?.map(|lent| match lent {
        Lent::Bytes(bytes) => bytes.as_ref().to_vec(),
        Lent::File(range) => panic!("{range:?}"),
    }))
}

#[test]
fn writers_and_readers_see_whole_segments() {
    let table = table();
    let region = SoftRegion::register(&table, 1, vec![0; SIZE], ALL).unwrap();
    let stag = region.stag();
    thread::scope(|scope| {
        for byte in 1..=2 {
            let mut memory = DomainMemory::new(table.clone(), 1);
            scope.spawn(move || (0..ROUNDS).for_each(|_| place(&mut memory, stag, byte).unwrap()));
        }
        let mut memory = DomainMemory::new(table.clone(), 1);
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                let bytes = lease(&mut memory, stag).unwrap().expect("no other lease is held");
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
            }
        });
        let region = &region;
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                let mut bytes = [0; SIZE];
                region.copy_out(0, &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
            }
        });
    });
}

#[test]
fn nothing_is_touched_after_deregistering() {
    for _ in 0..ROUNDS / 20 + 1 {
        let table = table();
        let region = Box::new(SoftRegion::register(&table, 1, vec![0; SIZE], ALL).unwrap());
        let (stag, start) = (region.stag(), Barrier::new(3));
        thread::scope(|scope| {
            for byte in 1..=2 {
                let (mut memory, start) = (DomainMemory::new(table.clone(), 1), &start);
                scope.spawn(move || {
                    start.wait();
                    // Until it is gone, and then for good.
                    while place(&mut memory, stag, byte).is_ok() {}
                    assert_eq!(place(&mut memory, stag, byte), Err(Denied::InvalidStag));
                    assert_eq!(lease(&mut memory, stag), Err(Denied::InvalidStag));
                });
            }
            start.wait();
            let bytes = region.deregister().unwrap();
            // It is ours alone now: nobody writes to it while we look.
            assert_eq!(bytes.len(), SIZE);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
        });
        assert!(table.entries().is_empty());
    }
}

#[test]
fn an_invalidated_region_is_dead_until_it_is_deregistered() {
    let table = table();
    let region = Box::new(SoftRegion::register(&table, 1, vec![7; SIZE], ALL).unwrap());
    let stag = region.stag();
    let mut memory = DomainMemory::new(table.clone(), 1);
    place(&mut memory, stag, 1).unwrap();
    DomainMemory::new(table.clone(), 1).invalidate(stag).unwrap();
    // It was at hand, which must not help.
    assert_eq!(place(&mut memory, stag, 2), Err(Denied::InvalidStag));
    assert_eq!(lease(&mut memory, stag), Err(Denied::InvalidStag));
    assert_eq!(memory.check_source(stag, 0, 1), Err(Denied::InvalidStag));
    assert!(region.copy_in(0, &[3]).is_err());
    assert_eq!(region.deregister().unwrap(), [1; SIZE]);
}

#[test]
fn a_region_is_reached_as_far_as_it_is_let() {
    let table = table();
    let region = SoftRegion::register(&table, 1, vec![0; SIZE], ALL).unwrap();
    let (stag, mut memory) = (region.stag(), DomainMemory::new(table, 1));
    let mut write = |length| memory.sink(Reach::Remote, stag, 0, length, &mut |bytes| bytes.fill(7));
    assert_eq!(write(SIZE), Ok(()));
    region.limit(10);
    // It was at hand, which must not help.
    assert_eq!((write(10), write(11)), (Ok(()), Err(Denied::Bounds)));
    region.limit(0);
    assert_eq!(write(1), Err(Denied::InvalidStag));
    assert_eq!(lease(&mut memory, stag), Err(Denied::InvalidStag));
    assert_eq!(memory.check_source(stag, 0, 1), Err(Denied::InvalidStag));
    // It is ours as ever.
    assert_eq!(memory.place(Reach::Local, stag, 0, &[1; SIZE]), Ok(()));
    assert!(matches!(memory.fetch(Reach::Local, stag, 0, SIZE, true), Ok(Some(Lent::Bytes(_)))));
    region.limit(usize::MAX);
    assert_eq!(lease(&mut memory, stag), Ok(Some(vec![1; SIZE])));
}

#[test]
fn nothing_is_touched_once_it_is_out_of_reach() {
    for _ in 0..ROUNDS / 20 + 1 {
        let table = table();
        let region = SoftRegion::register(&table, 1, vec![0; SIZE], ALL).unwrap();
        let (stag, start) = (region.stag(), Barrier::new(2));
        thread::scope(|scope| {
            let (mut memory, start) = (DomainMemory::new(table.clone(), 1), &start);
            scope.spawn(move || {
                start.wait();
                while place(&mut memory, stag, 1).is_ok() {}
            });
            start.wait();
            region.limit(0);
            region.copy_in(0, &[2; SIZE]).unwrap();
        });
        assert_eq!(Box::new(region).deregister().unwrap(), [2; SIZE]);
    }
}

#[test]
fn checks_come_in_their_order() {
    let table = table();
    let readable = SoftRegion::register(&table, 1, vec![0; SIZE], Access::REMOTE_READ).unwrap();
    let stag = readable.stag();
    let (mut ours, mut others) = (DomainMemory::new(table.clone(), 1), DomainMemory::new(table.clone(), 2));
    assert_eq!(place(&mut others, stag, 1), Err(Denied::NotAssociated));
    assert_eq!(lease(&mut others, stag), Err(Denied::NotAssociated));
    assert_eq!(others.invalidate(stag), Err(Denied::NotAssociated));
    assert_eq!(place(&mut ours, stag, 1), Err(Denied::Access));
    for bit in 0..32 {
        assert_eq!(lease(&mut ours, Stag(stag.0 ^ 1 << bit)), Err(Denied::InvalidStag));
    }
    let mut reach = |to, length| {
        ours.fetch(Reach::Remote, stag, to, length, true).map(|lent| lent.map(drop).expect("nothing is lent"))
    };
    assert_eq!(reach(0, SIZE), Ok(()));
    assert_eq!(reach(1, SIZE), Err(Denied::Bounds));
    assert_eq!(reach(u64::MAX, 1), Err(Denied::Wrap));
    let kept = SoftRegion::register(&table, 1, vec![0; SIZE], Access::LOCAL_READ).unwrap();
    assert_eq!(ours.invalidate(kept.stag()), Err(Denied::Access), "it was never given to the peer");
}

#[test]
fn who_holds_a_lease_waits_for_no_other_region() {
    let table = table();
    let [first, second] = [1, 2].map(|byte| SoftRegion::register(&table, 1, vec![byte; SIZE], ALL).unwrap());
    let mut memory = DomainMemory::new(table, 1);
    let held = memory.fetch(Reach::Remote, first.stag(), 0, SIZE, true).unwrap().unwrap();
    let locked = second.entry.write().unwrap();
    assert_eq!(lease(&mut memory, second.stag()), Ok(None), "come again without the lease");
    drop((held, locked));
    assert_eq!(lease(&mut memory, second.stag()), Ok(Some(vec![2; SIZE])));
}

#[test]
fn a_file_that_became_shorter_is_unreadable() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[5; 2 * SIZE]).unwrap();
    let file = Arc::new(file);
    let table = table();
    let length = SIZE as u64;
    assert!(SoftRegion::register_file(&table, 1, file.clone(), length + 1, length).is_err());
    let region = SoftRegion::register_file(&table, 1, file.clone(), length, length).unwrap();
    let mut memory = DomainMemory::new(table, 1);
    assert_eq!(lease(&mut memory, region.stag()), Ok(Some(vec![5; SIZE])));
    file.set_len(length).unwrap();
    assert_eq!(lease(&mut memory, region.stag()), Err(Denied::Unreadable));
}
