//! Undoing the steps of an ADD that fails: in reverse order, all of them, whichever way the ADD is left.

use cni::Error;

/// A step's reversal.
type Reversal<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// The steps that were done. Dropped, it undoes them; [`Rollback::keep`] makes them stay.
#[derive(Default)]
pub struct Rollback<'a> {
    steps: Vec<(&'static str, Reversal<'a>)>,
}

impl<'a> Rollback<'a> {
    /// Nothing done yet.
    pub fn new() -> Rollback<'a> {
        Rollback { steps: Vec::new() }
    }

    /// Notes a step that is about to be done, and may fail half way: `what` names it.
    pub fn on_failure(&mut self, what: &'static str, undo: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push((what, Box::new(undo)));
    }

    /// Withdraws the last step: it failed and changed nothing.
    pub fn withdraw(&mut self) {
        self.steps.pop();
    }

    /// The ADD succeeded.
    pub fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        for (what, undo) in self.steps.drain(..).rev() {
            if let Err(error) = undo() {
                // The runtime gets the error that made the ADD fail; this one is for the log.
                eprintln!("cannot undo {what}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_failed_add_is_undone_in_reverse_and_to_the_end() {
        let undone = RefCell::new(Vec::new());
        let mut rollback = Rollback::new();
        for step in ["lease", "link", "firewall"] {
            let undone = &undone;
            rollback.on_failure(step, move || {
                undone.borrow_mut().push(step);
                if step == "link" { Err(Error::new(100, "no")) } else { Ok(()) }
            });
        }
        drop(rollback);
        assert_eq!(*undone.borrow(), ["firewall", "link", "lease"]);
    }

    #[test]
    fn withdrawn_step_is_not_undone() {
        let undone = RefCell::new(Vec::new());
        let mut rollback = Rollback::new();
        for step in ["link", "lease"] {
            let undone = &undone;
            rollback.on_failure(step, move || {
                undone.borrow_mut().push(step);
                Ok(())
            });
        }
        rollback.withdraw();
        drop(rollback);
        assert_eq!(*undone.borrow(), ["link"]);
    }

    #[test]
    fn a_good_add_is_kept() {
        let undone = RefCell::new(0);
        let mut rollback = Rollback::new();
        rollback.on_failure("lease", || {
            *undone.borrow_mut() += 1;
            Ok(())
        });
        rollback.keep();
        assert_eq!(*undone.borrow(), 0);
    }
}
