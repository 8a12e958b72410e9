//! Several things at the same time, on a few threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};

/// How many things that work are done at the same time on each processor.
const WORKING: usize = 2;
/// How many that mostly wait are done at the same time.
const WAITING: usize = 64;

/// Does something to each of several things; after the first error no further one is begun.
///
/// # Errors
/// The first of what went wrong.
pub fn each<T: Sync>(things: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
            act(thing).inspect_err(|_| next.store(things.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..(processors * WORKING).min(things.len())).map(|_| scope.spawn(work)).collect();
        let mut all = Ok(());
        for thread in threads {
            let one = thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
            all = all.and(one);
        }
        all
    })
}

/// What something makes of each of several things, in their order.
pub fn map<T: Sync, R: Send>(things: &[T], make: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let made: Vec<Mutex<Option<R>>> = things.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while let Some((thing, slot)) = at(things, &made, next.fetch_add(1, Ordering::Relaxed)) {
            let result = make(thing);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WAITING.min(things.len()) {
            scope.spawn(work);
        }
    });
    made.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

fn at<'a, T, R>(things: &'a [T], made: &'a [R], index: usize) -> Option<(&'a T, &'a R)> {
    things.get(index).zip(made.get(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn things_are_done_all_or_until_one_fails() {
        let done = Mutex::new(Vec::new());
        let all: Vec<usize> = (0..100).collect();
        let push = |thing: &usize| {
            done.lock().unwrap().push(*thing);
            Ok(())
        };
        each(&all, push).unwrap();
        done.lock().unwrap().sort_unstable();
        assert_eq!(*done.lock().unwrap(), all);
        let fail = |thing: &usize| if *thing == 40 { bail!("forty") } else { Ok(()) };
        assert_eq!(each(&all, fail).unwrap_err().to_string(), "forty");
        each(&[], push).unwrap();
    }

    #[test]
    fn results_are_in_the_order_of_their_things() {
        let all: Vec<usize> = (0..200).collect();
        assert_eq!(map(&all, |thing| thing * 2), all.iter().map(|thing| thing * 2).collect::<Vec<_>>());
        assert!(map(&[] as &[u8], |_| ()).is_empty());
    }
}
