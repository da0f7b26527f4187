//! Names of images, and whether one has to be pulled.

/// What to do before a container of an image can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The image is there and may be used.
    Present,
    Needed,
    /// The image is not there and the pod forbids pulling.
    Never,
}

/// Decides by `imagePullPolicy`; the API server has filled in its default.
pub fn pull(policy: &str, present: bool) -> Pull {
    match (policy, present) {
        ("Always", _) => Pull::Needed,
        ("Never", false) => Pull::Never,
        (_, true) => Pull::Present,
        (_, false) => Pull::Needed,
    }
}

/// The full name of an image: `busybox` is `docker.io/library/busybox:latest`.
///
/// `None` when the text names no image.
pub fn normalize(reference: &str) -> Option<String> {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    // A colon after the last slash starts a tag; before it, a port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => (before, Some(tag)),
        _ => (name, None),
    };
    let (domain, path) = match name.split_once('/') {
        Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => (domain, path.to_owned()),
        _ if name.contains('/') => ("docker.io", name.to_owned()),
        _ => ("docker.io", format!("library/{name}")),
    };
    let valid_path = path.split('/').all(|part| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    });
    let valid_tag = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !tag.starts_with(['.', '-'])
    });
    let valid_digest = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    if domain.is_empty() || !valid_path || !valid_tag || !valid_digest {
        return None;
    }
    let mut full = format!("{domain}/{path}");
    match (tag, digest) {
        (tag, Some(digest)) => {
            if let Some(tag) = tag {
                full.push(':');
                full.push_str(tag);
            }
            full.push('@');
            full.push_str(digest);
        }
        (tag, None) => {
            full.push(':');
            full.push_str(tag.unwrap_or("latest"));
        }
    }
    Some(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reference: &str, expected: Option<&str>) {
        assert_eq!(normalize(reference).as_deref(), expected, "{reference}");
    }

    #[test]
    fn short_names_become_full_ones() {
        check("busybox", Some("docker.io/library/busybox:latest"));
        check("team/app:1.2", Some("docker.io/team/app:1.2"));
        check("quorate.local/web:1", Some("quorate.local/web:1"));
        check("localhost/web", Some("localhost/web:latest"));
        check("172.30.0.254:5000/team/nginx", Some("172.30.0.254:5000/team/nginx:latest"));
        let digest = format!("app@sha256:{}", "a".repeat(64));
        check(&digest, Some(&format!("docker.io/library/{digest}")));
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for reference in
            ["", "Web", "a b", "web:", "web:-1", "web@sha256", "/web", "web//x", "web:1/..", "web@sha256:zz"]
        {
            check(reference, None);
        }
    }

    #[test]
    fn the_policy_decides() {
        assert_eq!(pull("Always", true), Pull::Needed);
        assert_eq!(pull("IfNotPresent", true), Pull::Present);
        assert_eq!(pull("IfNotPresent", false), Pull::Needed);
        assert_eq!(pull("Never", false), Pull::Never);
        assert_eq!(pull("Never", true), Pull::Present);
    }
}
