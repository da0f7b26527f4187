//! CronJobs.

use serde_json::Value;

use super::super::strategy::{Strategy, child, default_to, text};
use super::super::validation::Errors;
use super::job;

/// A CronJob's Jobs are named after it, with a number of up to 11 characters.
const NAME_LIMIT: usize = 52;

pub(in crate::registry) struct CronJobStrategy;

impl Strategy for CronJobStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "concurrencyPolicy", "Allow");
        default_to(spec, "suspend", false);
        default_to(spec, "successfulJobsHistoryLimit", 3);
        default_to(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = spec.get_mut("jobTemplate").and_then(|template| template.get_mut("spec")) {
            // Upstream leaves the numbers of a template to the Job itself.
            super::super::apps::default_template(template);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let schedule = text(spec, "schedule");
        if schedule.is_empty() {
            errors.required("spec.schedule", "");
        } else if !is_schedule(schedule) {
            let found = schedule.split_whitespace().count();
            errors.invalid(
                "spec.schedule",
                &spec["schedule"],
                format_args!("expected exactly 5 fields, found {found}: {schedule:?}"),
            );
        }
        errors.one_of("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &["Allow", "Forbid", "Replace"]);
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.non_negative(&format!("spec.{field}"), &spec[field]);
        }
        if text(&object["metadata"], "name").len() > NAME_LIMIT {
            errors.invalid(
                "metadata.name",
                &object["metadata"]["name"],
                format_args!("must be no more than {NAME_LIMIT} characters"),
            );
        }
        job::check_spec(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", errors);
    }
}

/// Whether the schedule has cron's shape; what its numbers mean is the controller's to know.
fn is_schedule(schedule: &str) -> bool {
    const MACROS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if MACROS.contains(&schedule) || schedule.starts_with("@every ") {
        return true;
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    fields.len() == 5
        && fields.iter().all(|field| field.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"*,-/?".contains(&byte)))
}
