//! What keeps the disk from filling up and sick members from answering: quota, alarms,
//! pressure on writers, downgrade.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};
use quorate_proto::etcd::alarm_request::AlarmAction;
use quorate_proto::etcd::downgrade_request::DowngradeAction;
use quorate_proto::etcd::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DowngradeRequest, DowngradeResponse, HashKvResponse,
};
use tokio::sync::Mutex;

use super::requests::wrong_kind;
use super::{Inner, SERVER_VERSION, Store};
use crate::command::{AlarmChange, ApplyError, CommandResult, Operation};
use crate::error::StoreError;
use crate::mvcc::Space;
use crate::quota::{self, Load};

/// From this part of the quota on, space is given back after every compaction.
const TIGHT_PERCENT: u64 = 80;

/// What is known of the space without asking the database for every write.
#[derive(Debug, Default)]
pub(super) struct House {
    used_bytes: AtomicU64,
    /// What was let in since.
    added_bytes: AtomicU64,
    delay_micros: AtomicU64,
    /// A write was refused for lack of space: the next look raises the alarm.
    refused: AtomicBool,
    /// One hash of everything at a time.
    hashing: Mutex<()>,
    /// One member is re-seeded at a time.
    pub(super) reseeding: Mutex<()>,
}

impl House {
    fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed).saturating_add(self.added_bytes.load(Ordering::Relaxed))
    }

    fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_micros.load(Ordering::Relaxed))
    }

    /// Reckons with a write that is about to be proposed, and slows it down before there is
    /// no space left.
    pub(super) async fn let_in(&self, operation: &Operation) {
        let cost = quota::cost(operation);
        if cost == 0 {
            return;
        }
        self.added_bytes.fetch_add(cost, Ordering::Relaxed);
        let delay = quota::delay_of(cost, self.delay());
        if !delay.is_zero() {
            counter!("quorate_store_writes_slowed_total").increment(1);
            tokio::time::sleep(delay).await;
        }
    }

    fn note(&self, load: &Load) {
        self.used_bytes.store(load.used_bytes, Ordering::Relaxed);
        self.added_bytes.store(0, Ordering::Relaxed);
        let delay = u64::try_from(quota::delay(load).as_micros()).unwrap_or(u64::MAX);
        self.delay_micros.store(delay, Ordering::Relaxed);
    }
}

impl Store {
    /// Lists, raises or clears alarms, as etcd does.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, StoreError> {
        let raise = match request.action() {
            AlarmAction::Get => {
                self.inner.read_index.wait().await?;
                let header = Some(self.header(self.revision()));
                return Ok(AlarmResponse { header, alarms: self.inner.engine.alarms().list(request.alarm) });
            }
            AlarmAction::Activate => true,
            AlarmAction::Deactivate => false,
        };
        let change = AlarmChange { raise, member: request.member_id, alarm: request.alarm, automatic: false };
        match self.propose(Operation::Alarm(change), None).await? {
            CommandResult::Alarm(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => wrong_kind(&other),
        }
    }

    /// The alarms that this member knows of.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.inner.engine.alarms().list(AlarmType::None.into())
    }

    /// The alarms that bear on what this member answers: another member that was put aside
    /// harms nobody here.
    pub fn alarms_here(&self) -> Vec<AlarmMember> {
        let (own, known) = (self.inner.identity.member_id, self.inner.engine.alarms());
        let elsewhere = |alarm: &AlarmMember| {
            alarm.member_id != own
                && alarm.alarm() == AlarmType::Corrupt
                && known.get(alarm.member_id, AlarmType::Corrupt) == Some(true)
        };
        self.alarms().into_iter().filter(|alarm| !elsewhere(alarm)).collect()
    }

    /// The size past which writes are refused; 0 is none.
    pub fn quota_bytes(&self) -> u64 {
        self.inner.config.quota_bytes
    }

    /// As [`Store::hash_kv`], on a thread of its own; one after the other.
    ///
    /// # Errors
    /// As [`Store::hash_kv`].
    pub(crate) async fn hash_kv_apart(&self, revision: i64) -> Result<HashKvResponse, StoreError> {
        let _turn = self.inner.house.hashing.lock().await;
        let store = self.clone();
        let task = tokio::task::spawn_blocking(move || store.hash_kv(revision));
        task.await.map_err(|_| StoreError::Stopped)?
    }

    /// Which parts of the keys take how much space, by the first `depth` segments of their
    /// paths. Estimates of this member's files; up to a moment of work for the disk.
    ///
    /// # Errors
    /// `Engine` when the database cannot be read.
    pub async fn space(&self, depth: usize) -> Result<Space, StoreError> {
        let engine = std::sync::Arc::clone(&self.inner.engine);
        let task = tokio::task::spawn_blocking(move || engine.space(depth));
        Ok(task.await.map_err(|_| StoreError::Stopped)??)
    }

    /// The version that the members are to be downgraded to, as `major.minor.0`.
    pub fn downgrade_target(&self) -> Option<String> {
        self.inner.engine.downgrade()
    }

    /// Checks, announces or cancels a downgrade, as etcd does. The announcement is for
    /// operators and their tools: the format of the data is that of every version so far.
    ///
    /// # Errors
    /// `Refused` as etcd refuses; as [`Store::put`].
    pub async fn downgrade(&self, request: DowngradeRequest) -> Result<DowngradeResponse, StoreError> {
        let own = minor_version(SERVER_VERSION).ok_or(StoreError::Unsupported("this version"))?;
        match request.action() {
            DowngradeAction::Cancel => self.propose_downgrade(None).await?,
            action => {
                let target = minor_version(&request.version).ok_or(ApplyError::DowngradeVersionFormat)?;
                self.inner.read_index.wait().await?;
                if (target.0, target.1.checked_add(1)) != (own.0, Some(own.1)) {
                    return Err(ApplyError::DowngradeVersion.into());
                }
                if self.downgrade_target().is_some() {
                    return Err(ApplyError::DowngradeInProgress.into());
                }
                if action == DowngradeAction::Enable {
                    self.propose_downgrade(Some(format!("{}.{}.0", target.0, target.1))).await?;
                }
            }
        }
        let header = Some(self.header(self.revision()));
        Ok(DowngradeResponse { header, version: format!("{}.{}", own.0, own.1) })
    }

    async fn propose_downgrade(&self, target: Option<String>) -> Result<(), StoreError> {
        self.propose(Operation::Downgrade { target }, None).await.map(|_| ())
    }

    /// Refuses what this member must not answer because its data differs from that of the
    /// majority.
    pub(super) fn check_serving(&self) -> Result<(), StoreError> {
        match self.inner.is_aside() {
            true => Err(ApplyError::Corrupt.into()),
            false => Ok(()),
        }
    }

    /// Refuses a write for which there is no space.
    pub(super) fn admit_write(&self, operation: &Operation) -> Result<(), StoreError> {
        self.check_serving()?;
        let house = &self.inner.house;
        if quota::fits(house.used_bytes(), quota::cost(operation), self.inner.config.quota_bytes) {
            return Ok(());
        }
        house.refused.store(true, Ordering::Relaxed);
        Err(ApplyError::NoSpace.into())
    }
}

impl Inner {
    /// Whether a comparison found this member to differ from the majority: it answers no
    /// client and leads nobody until it is re-seeded.
    pub(super) fn is_aside(&self) -> bool {
        self.engine.alarm(self.identity.member_id, AlarmType::Corrupt) == Some(true)
    }

    async fn change_alarm(&self, raise: bool, alarm: AlarmType) {
        self.change_alarm_of(self.identity.member_id, raise, alarm).await;
    }

    pub(super) async fn change_alarm_of(&self, member: u64, raise: bool, alarm: AlarmType) {
        let change = AlarmChange { raise, member, alarm: alarm.into(), automatic: true };
        let about = format!("{member:x}");
        match self.proposer.propose(Operation::Alarm(change), None).await {
            Ok(_) if raise => tracing::warn!(?alarm, member = about, "raised an alarm"),
            Ok(_) => tracing::info!(?alarm, member = about, "cleared an alarm"),
            // Looked at again at the next tick.
            Err(error) => tracing::warn!(%error, ?alarm, "an alarm was not changed yet"),
        }
    }
}

/// Looks at the space once, and raises or clears this member's alarm.
pub(super) async fn watch_space(inner: &Inner) {
    let load = Load { quota_bytes: inner.config.quota_bytes, ..inner.engine.load() };
    let refused = inner.house.refused.swap(false, Ordering::Relaxed);
    inner.house.note(&load);
    inner.engine.set_tight(load.quota_bytes > 0 && load.used_bytes > load.quota_bytes / 100 * TIGHT_PERCENT);
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    gauge!("etcd_server_quota_backend_bytes").set(load.quota_bytes as f64);
    gauge!("quorate_store_write_delay_seconds").set(inner.house.delay().as_secs_f64());
    let alarms = inner.engine.alarms();
    match alarms.get(inner.identity.member_id, AlarmType::Nospace) {
        None if refused || !quota::fits(load.used_bytes, 1, load.quota_bytes) => {
            inner.change_alarm(true, AlarmType::Nospace).await;
        }
        Some(true) if quota::has_room(load.used_bytes, load.quota_bytes) => {
            inner.change_alarm(false, AlarmType::Nospace).await;
        }
        _ => {}
    }
    // Nobody else clears the alarms of a member that was removed.
    let view = inner.raft.view();
    if view.reign.leads() {
        for AlarmMember { member_id, alarm } in alarms.automatic() {
            if let (false, Ok(alarm)) = (view.members.contains_key(&member_id), AlarmType::try_from(alarm)) {
                inner.change_alarm_of(member_id, false, alarm).await;
            }
        }
    }
}

/// The major and minor number of `1.2.3` or `1.2`, with whatever follows `-` or `+`.
fn minor_version(text: &str) -> Option<(u64, u64)> {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?;
    match (&parts[..], core == text) {
        ([major, minor], true) => Some((number(major)?, number(minor)?)),
        ([major, minor, patch], _) => number(patch).and_then(|_: u64| Some((number(major)?, number(minor)?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_etcd_reads_them() {
        let check = |text: &str, expected: Option<(u64, u64)>| assert_eq!(minor_version(text), expected, "{text:?}");
        check("3.6.0", Some((3, 6)));
        check("3.6", Some((3, 6)));
        check("3.6.9-rc.1+build", Some((3, 6)));
        check("", None);
        check("3", None);
        check("3.6-rc", None);
        check("3.6.0.0", None);
        check("v3.6.0", None);
        check("3.+6", None);
        check("3..0", None);
        check("3.99999999999999999999", None);
    }
}
