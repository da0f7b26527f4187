//! Who asks, on whose authority, and how the request is to be treated.

use std::sync::{Arc, Mutex};

use quorate_proto::fence::Fence;

use crate::authn::User;
use crate::schema::FieldValidation;

/// What accompanies every request through the verbs.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    pub user: User,
    /// When set, writes take effect only while this reign lasts.
    pub fence: Option<Fence>,
    /// Everything is done except the write itself.
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Collects what becomes `Warning:` headers.
    pub warnings: Warnings,
}

/// Warnings for the client, gathered while a request is worked on.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl RequestContext {
    /// A request of the server itself, or of a component inside it.
    pub fn system(user: &str) -> Self {
        Self { user: User::system(user), ..Self::default() }
    }

    pub fn with_fence(mut self, fence: Option<Fence>) -> Self {
        self.fence = fence;
        self
    }
}

impl Warnings {
    /// Adds a warning unless the same text was given before.
    pub fn add(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut warnings = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Everything that was added so far.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
