//! The root module: the one symbol that a plugin library exports.
//!
//! It lives here and not in the plugins, so that every linked artifact, host or library, has
//! exactly one. It answers with whatever `inventory` collected in *this* artifact; one library may
//! thus hold any number of plugins.

// abi_stable 0.11.3's expansion and naming; no `unsafe` is written here.
#![allow(unsafe_code, non_camel_case_types, missing_docs)]

use crate::{log::LogSink, registry::Entry, stage::*};
use abi_stable::{
    StableAbi, export_root_module, library::RootModule, package_version_strings,
    prefix_type::PrefixTypeTrait, sabi_types::VersionStrings, std_types::RVec,
};

/// What a library tells the host. Fields may be added at the end without breaking older hosts.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Plugin_Ref, prefix_fields = Plugin_Prefix)))]
#[sabi(missing_field(panic))]
pub struct Plugin {
    /// Sends the library's log to the host.
    pub attach: extern "C" fn(LogSink),
    pub datasets: extern "C" fn() -> RVec<Entry<BoxDataset>>,
    pub prompts: extern "C" fn() -> RVec<Entry<BoxPromptBank>>,
    pub generators: extern "C" fn() -> RVec<Entry<BoxGenerator>>,
    pub segmenters: extern "C" fn() -> RVec<Entry<BoxSegmenter>>,
    #[sabi(last_prefix_field)]
    pub validators: extern "C" fn() -> RVec<Entry<BoxValidator>>,
    /// Libraries of before there were measures have none.
    #[sabi(missing_field(with = no_measures))]
    pub measures: extern "C" fn() -> RVec<Entry<BoxMeasure>>,
}

/// What a library offers that knows nothing of measures.
fn no_measures() -> extern "C" fn() -> RVec<Entry<BoxMeasure>> {
    extern "C" fn none() -> RVec<Entry<BoxMeasure>> {
        RVec::new()
    }
    none
}

impl RootModule for Plugin_Ref {
    abi_stable::declare_root_module_statics! {Plugin_Ref}
    const BASE_NAME: &'static str = "diffaug_plugin";
    const NAME: &'static str = "diffaug plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// The root module of this artifact.
#[export_root_module]
pub fn root_module() -> Plugin_Ref {
    Plugin {
        attach: crate::log::attach,
        datasets,
        prompts,
        generators,
        segmenters,
        validators,
        measures,
    }
    .leak_into_prefix()
}

macro_rules! lists {
    ($($name:ident: $Boxed:ident;)+) => {
        $(
            /// What this artifact registered of the kind.
            pub extern "C" fn $name() -> RVec<Entry<$Boxed>> {
                inventory::iter::<Entry<$Boxed>>.into_iter().copied().collect()
            }
        )+
    };
}

lists! {
    datasets: BoxDataset;
    prompts: BoxPromptBank;
    generators: BoxGenerator;
    segmenters: BoxSegmenter;
    validators: BoxValidator;
    measures: BoxMeasure;
}
