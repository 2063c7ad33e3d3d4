//! Who sends: the attributes that go with all spans and metrics of a process.

use std::process;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;

use crate::settings::TelemetrySettings;

const SERVICE_NAME: &str = "service.name";

/// What the existing server is called.
const DEFAULT_NAME: &str = "vcon-server";

/// The resource of this process. What an operator sets stands above what is found out here.
pub(super) fn resource(settings: &TelemetrySettings) -> Resource {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy().into_owned();
    let of_process = [
        KeyValue::new(SERVICE_NAME, DEFAULT_NAME),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new(
            "service.instance.id",
            format!("{host}-pid-{}", process::id()),
        ),
        KeyValue::new("host.name", host),
    ];
    let set = settings.attributes.iter();
    let set = set.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let name = settings.service_name.clone();
    let name = name.map(|name| KeyValue::new(SERVICE_NAME, name));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(of_process)
        .with_attributes(set)
        .with_attributes(name)
        .build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn value(variables: &[(&str, &str)], name: &'static str) -> Option<String> {
        let settings = Settings::from_lookup(&|wanted| {
            let found = variables.iter().find(|(known, _)| *known == wanted);
            found.map(|(_, value)| value.into())
        });
        let resource = resource(&settings.unwrap().telemetry);
        resource.get(&name.into()).map(|value| value.to_string())
    }

    #[test]
    fn the_service_is_named_by_its_variable_then_by_the_attributes() {
        let attributes = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=calls,team=a%20b,host.name=h",
        );
        assert_eq!(value(&[], SERVICE_NAME).as_deref(), Some("vcon-server"));
        assert_eq!(value(&[attributes], SERVICE_NAME).as_deref(), Some("calls"));
        let name = ("OTEL_SERVICE_NAME", "named");
        assert_eq!(
            value(&[attributes, name], SERVICE_NAME).as_deref(),
            Some("named")
        );
        assert_eq!(value(&[attributes], "team").as_deref(), Some("a b"));
        assert_eq!(value(&[attributes], "host.name").as_deref(), Some("h"));
        let instance = value(&[], "service.instance.id").unwrap();
        let host = value(&[], "host.name").unwrap();
        assert_eq!(instance, format!("{host}-pid-{}", process::id()));
    }
}
