//! none: a container with a network namespace of its own, and nothing in it but the loopback interface.

use crate::loopback;
use cni::Error;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::AddResult;

/// The plugin.
pub struct None;

impl Plugin for None {
    fn name(&self) -> &'static str {
        "none"
    }

    fn about(&self) -> String {
        crate::about("none")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        loopback::up(request)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        loopback::down(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        loopback::is_up(request)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}
