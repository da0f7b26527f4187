//! Columns of volumes and what provides them.

use serde_json::{Value, json};

use super::look::{Look, items, or, plain};
use super::{AGE, Column, NAME, Printer, column, integer, wide};

pub(super) fn printer(group: &str, resource: &str) -> Option<&'static Printer> {
    Some(match (group, resource) {
        ("", "persistentvolumes") => &VOLUME,
        ("", "persistentvolumeclaims") => &CLAIM,
        ("storage.k8s.io", "storageclasses") => &CLASS,
        ("storage.k8s.io", "volumeattachments") => &ATTACHMENT,
        ("storage.k8s.io", "volumeattributesclasses") => &ATTRIBUTES_CLASS,
        ("storage.k8s.io", "csinodes") => &CSI_NODE,
        ("storage.k8s.io", "csidrivers") => &CSI_DRIVER,
        ("storage.k8s.io", "csistoragecapacities") => &CSI_CAPACITY,
        _ => return None,
    })
}

const CAPACITY: Column = column("Capacity", "How much fits in.");
const ACCESS_MODES: Column = column("Access Modes", "Who may mount it, and how.");
const STORAGE_CLASS: Column = column("StorageClass", "The class it was made by.");
const ATTRIBUTES: Column = column("VolumeAttributesClass", "The class of its changeable attributes.");
const VOLUME_MODE: Column = wide("VolumeMode", "Whether it is a file system or a block device.");

static VOLUME: Printer = Printer {
    columns: &[
        NAME,
        CAPACITY,
        ACCESS_MODES,
        column("Reclaim Policy", "What happens to it when its claim is gone."),
        column("Status", "Whether it is bound."),
        column("Claim", "The claim that it is bound to."),
        STORAGE_CLASS,
        ATTRIBUTES,
        column("Reason", "Why it failed."),
        AGE,
        VOLUME_MODE,
    ],
    cells: |look| {
        let claim = match look.text("spec.claimRef.name") {
            "" => String::new(),
            name => format!("{}/{name}", look.text("spec.claimRef.namespace")),
        };
        vec![
            look.name(),
            json!(plain(look.at("spec.capacity.storage"))),
            json!(access_modes(look.items("spec.accessModes"))),
            json!(look.text("spec.persistentVolumeReclaimPolicy")),
            json!(if look.is_terminating() { "Terminating" } else { look.text("status.phase") }),
            json!(claim),
            json!(class_of(look)),
            json!(or(look.text("spec.volumeAttributesClassName"), "<unset>")),
            json!(look.text("status.reason")),
            look.age(),
            json!(or(look.text("spec.volumeMode"), "<unset>")),
        ]
    },
};

static CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether it is bound."),
        column("Volume", "The volume that it is bound to."),
        CAPACITY,
        ACCESS_MODES,
        STORAGE_CLASS,
        ATTRIBUTES,
        AGE,
        VOLUME_MODE,
    ],
    cells: |look| {
        let bound = !look.text("spec.volumeName").is_empty();
        let (capacity, modes) = if bound {
            (plain(look.at("status.capacity.storage")), access_modes(look.items("status.accessModes")))
        } else {
            (String::new(), String::new())
        };
        vec![
            look.name(),
            json!(if look.is_terminating() { "Terminating" } else { look.text("status.phase") }),
            json!(look.text("spec.volumeName")),
            json!(capacity),
            json!(modes),
            json!(class_of(look)),
            json!(or(look.text("spec.volumeAttributesClassName"), "<unset>")),
            look.age(),
            json!(or(look.text("spec.volumeMode"), "<unset>")),
        ]
    },
};

/// The class by the old annotation, which still counts, or by the field.
fn class_of<'a>(look: &Look<'a>) -> &'a str {
    let old = look.at("metadata.annotations")["volume.beta.kubernetes.io/storage-class"].as_str().unwrap_or_default();
    or(old, look.text("spec.storageClassName"))
}

fn access_modes(modes: &[Value]) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let texts: Vec<&str> =
        short.iter().filter(|(mode, _)| modes.iter().any(|own| own == mode)).map(|(_, short)| *short).collect();
    texts.join(",")
}

static CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Provisioner", "Who makes the volumes."),
        column("ReclaimPolicy", "What happens to a volume when its claim is gone."),
        column("VolumeBindingMode", "When a volume is made."),
        column("AllowVolumeExpansion", "Whether claims may grow."),
        AGE,
    ],
    cells: |look| {
        let annotation = |name: &str| look.at("metadata.annotations")[name] == "true";
        let default = annotation("storageclass.kubernetes.io/is-default-class")
            || annotation("storageclass.beta.kubernetes.io/is-default-class");
        let suffix = if default { " (default)" } else { "" };
        vec![
            json!(format!("{}{suffix}", look.text("metadata.name"))),
            json!(look.text("provisioner")),
            json!(or(look.text("reclaimPolicy"), "Delete")),
            json!(or(look.text("volumeBindingMode"), "<unset>")),
            json!(look.at("allowVolumeExpansion").as_bool().unwrap_or_default().to_string()),
            look.age(),
        ]
    },
};

static ATTACHMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Attacher", "The driver that attaches."),
        column("PV", "The volume."),
        column("Node", "The node it is attached to."),
        column("Attached", "Whether it is attached."),
        AGE,
    ],
    cells: |look| {
        vec![
            look.name(),
            json!(look.text("spec.attacher")),
            json!(look.text("spec.source.persistentVolumeName")),
            json!(look.text("spec.nodeName")),
            json!(look.at("status.attached").as_bool().unwrap_or_default().to_string()),
            look.age(),
        ]
    },
};

static ATTRIBUTES_CLASS: Printer = Printer {
    columns: &[NAME, column("DriverName", "The driver that knows the attributes."), AGE],
    cells: |look| vec![look.name(), json!(look.text("driverName")), look.age()],
};

static CSI_NODE: Printer = Printer {
    columns: &[NAME, integer("Drivers", "How many drivers the node has."), AGE],
    cells: |look| vec![look.name(), json!(look.count("spec.drivers")), look.age()],
};

static CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        column("AttachRequired", "Whether volumes are attached before they are mounted."),
        column("PodInfoOnMount", "Whether the driver is told of the pod."),
        column("StorageCapacity", "Whether the driver reports what is free."),
        column("TokenRequests", "The audiences of tokens that the driver gets."),
        column("RequiresRepublish", "Whether the driver is called again and again."),
        column("Modes", "How volumes live: with their pod, or on their own."),
        AGE,
    ],
    cells: |look| {
        let flag = |path: &str, otherwise: bool| json!(look.at(path).as_bool().unwrap_or(otherwise).to_string());
        let join = |path: &str, otherwise: &str| -> Value {
            let texts: Vec<String> = items(look.object, path)
                .iter()
                .map(|item| if item.is_string() { plain(item) } else { plain(&item["audience"]) })
                .collect();
            json!(or(&texts.join(","), otherwise))
        };
        vec![
            look.name(),
            flag("spec.attachRequired", true),
            flag("spec.podInfoOnMount", false),
            flag("spec.storageCapacity", false),
            join("spec.tokenRequests", "<unset>"),
            flag("spec.requiresRepublish", false),
            join("spec.volumeLifecycleModes", "<none>"),
            look.age(),
        ]
    },
};

static CSI_CAPACITY: Printer = Printer {
    columns: &[NAME, STORAGE_CLASS, CAPACITY],
    cells: |look| vec![look.name(), json!(look.text("storageClassName")), json!(plain(look.at("capacity")))],
};
