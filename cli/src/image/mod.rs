//! `bixi image`.

mod upload;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Shown, age};
use crate::progress::Progress;
use bixi_api::ecs::{Image, Images, Parameters};
use bixi_api::operator::ImageDescription;
use bixi_image::bundle::Bundle;
use bixi_image::cache::Cache;
use bixi_image::debian;
use bixi_image::import::import;
use bixi_image::tiny::Tiny;
use std::path::{Path, PathBuf};

/// Images that instances are made of.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the images
    List {
        /// Those of all tenants, unfinished ones too (operators)
        #[arg(long)]
        all_tenants: bool,
    },
    /// Give the cloud a disk image, raw or qcow2, or a folder made by `image build` (operators)
    Import {
        /// The file or the folder
        source: PathBuf,
        /// Largest disk that is taken, in GiB
        #[arg(long, value_name = "GIB", default_value_t = 2048)]
        limit: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Build an image on this machine
    #[command(subcommand)]
    Build(Build),
}

/// What can be built.
#[derive(Debug, clap::Subcommand)]
pub enum Build {
    /// A small image of Debian's own kernel and busybox, and give it to the cloud (operators)
    Tiny {
        /// Keep it in this new folder, and give it to nobody
        #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "tenant", "os_name"])]
        folder: Option<PathBuf>,
        /// A program of this machine that goes to /bin of the image; can be given again
        #[arg(long = "program", value_name = "FILE")]
        programs: Vec<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Debian 12 with cloud-init and OpenSSH, and give it to the cloud (operators); needs root, and some minutes
    Debian {
        /// Keep it in this new folder, and give it to nobody
        #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "tenant", "os_name"])]
        folder: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
}

/// What the image is to be in the cloud.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Its name, if not that of the file
    #[arg(long)]
    name: Option<String>,
    /// Whose it is, by id or name; everybody's unless told
    #[arg(long)]
    tenant: Option<String>,
    /// Name of its system, for people
    #[arg(long, value_name = "NAME")]
    os_name: Option<String>,
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List { all_tenants: true } => {
                let images: Vec<ImageDescription> = context.operator()?.get("/v1/images").await?;
                context.output.list(&images)
            }
            Self::List { all_tenants: false } => {
                context.output.list(&context.ecs()?.list::<Images>(&Parameters::new()).await?)
            }
            Self::Import { source, limit, target } => {
                let name = target.name.clone().unwrap_or_else(|| stem(&source));
                if source.is_dir() {
                    let bundle = Bundle::open(&source)?;
                    bundle.verify()?;
                    return upload::upload(context, &bundle, &name, target).await;
                }
                let folder = scratch()?;
                let bundle = convert(&source, &folder.path().join("bundle"), &name, limit)?;
                upload::upload(context, &bundle, &name, target).await
            }
            Self::Build(Build::Tiny { folder, programs, target }) => {
                build_tiny(context, folder, &programs, target).await
            }
            Self::Build(Build::Debian { folder, target }) => {
                give(context, folder, "debian", target, |folder| Ok(debian::build(folder)?)).await
            }
        }
    }
}

fn convert(source: &Path, folder: &Path, name: &str, limit: u64) -> Result<Bundle, Failure> {
    let mut progress = Progress::new();
    let limit = limit.saturating_mul(1 << 30);
    let (bundle, imported) = import(source, folder, name, limit, |done, all| {
        let percent = u128::from(done) * 100 / u128::from(all.max(1));
        // By tens: whoever logs it wants ten lines.
        progress.say(&format!("reading {}: {}%", source.display(), percent / 10 * 10));
    })?;
    progress.say(&format!("read {:?}: {} MiB", imported.format, imported.bytes >> 20));
    Ok(bundle)
}

async fn build_tiny(
    context: &Context,
    folder: Option<PathBuf>,
    programs: &[PathBuf],
    target: Target,
) -> Result<(), Failure> {
    let places: Vec<(String, &Path)> = programs
        .iter()
        .map(|program| {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            (format!("bin/{name}"), program.as_path())
        })
        .collect();
    let places: Vec<(&str, &Path)> = places.iter().map(|(name, at)| (name.as_str(), *at)).collect();
    let tiny = Tiny::build(&Cache::new(cache()?), &places)?;
    give(context, folder, "tiny", target, |folder| Ok(tiny.write_bundle(folder)?)).await
}

/// Lets `build` make a bundle: in `folder` if that is told, else on its way to the cloud.
async fn give(
    context: &Context,
    folder: Option<PathBuf>,
    name: &str,
    target: Target,
    build: impl FnOnce(&Path) -> Result<Bundle, Failure>,
) -> Result<(), Failure> {
    if let Some(folder) = folder {
        let bundle = build(&folder)?;
        let shown = folder.display().to_string();
        return context.output.value(&bundle.manifest, &shown, &shown);
    }
    // Before minutes of work: whoever may not give it to the cloud learns that now.
    context.operator()?;
    let scratch = scratch()?;
    let bundle = build(&scratch.path().join(name))?;
    let name = target.name.clone().unwrap_or_else(|| name.to_owned());
    upload::upload(context, &bundle, &name, target).await
}

/// Where finished parts of builds are kept.
fn cache() -> Result<PathBuf, Failure> {
    let told = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = told("XDG_CACHE_HOME").or_else(|| Some(told("HOME")?.join(".cache")));
    let homeless = || Failure::Failed("neither HOME nor XDG_CACHE_HOME is set: set one".to_owned());
    Ok(folder.ok_or_else(homeless)?.join("bixi/images"))
}

/// A folder for an image on its way. TMPDIR says where there is room.
fn scratch() -> Result<tempfile::TempDir, Failure> {
    tempfile::tempdir()
        .map_err(|e| Failure::system("make a folder (set TMPDIR to another place)", e))
}

/// A file's name without its ending.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

impl Shown for Image {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "STATUS", "ARCH", "SYSTEM", "SIZE", "OWNER", "CREATED"];

    fn row(&self) -> Vec<String> {
        vec![
            self.image_id.clone(),
            self.image_name.clone(),
            self.status.clone(),
            self.architecture.clone(),
            self.os_name.clone(),
            format!("{} GiB", self.size),
            self.image_owner_alias.clone(),
            self.creation_time.clone(),
        ]
    }

    fn name(&self) -> String {
        self.image_id.clone()
    }
}

impl Shown for ImageDescription {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "STATUS", "ARCH", "SYSTEM", "SIZE", "TENANT", "AGE"];

    fn row(&self) -> Vec<String> {
        let bytes = self.files.iter().fold(0_u64, |all, file| all.saturating_add(file.size));
        vec![
            self.id.clone(),
            self.name.clone(),
            if self.available { "Available" } else { "Creating" }.to_owned(),
            self.architecture.clone(),
            self.os_name.clone(),
            format!("{} MiB", bytes.div_ceil(1 << 20)),
            self.tenant.clone().unwrap_or_default(),
            age(self.created),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}
