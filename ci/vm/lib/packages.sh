# shellcheck shell=bash
# The Debian packages that the rig needs on the machine that runs it.

# A program that proves its package is there, and the package.
readonly NEEDED=(
    qemu-system-x86_64:qemu-system-x86 busybox:busybox-static nvme:nvme-cli fio:fio modprobe:kmod ss:iproute2 jq:jq
    mkfs.ext4:e2fsprogs dmsetup:dmsetup blkdiscard:util-linux cpio:cpio xz:xz-utils dpkg-deb:dpkg
)

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# qemu-system-x86 of the release cannot stand beside qemu-utils of backports (they share files of one version), so
# take it from where qemu-utils came from; adds the backports of the mirror that this machine already uses.
qemu_release() {
    local version
    version=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
    [[ $version == *~bpo* ]] || return 0
    # shellcheck source=/dev/null
    local codename; codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    if ! apt-cache policy | grep -q "n=$codename-backports"; then
        local uri key='' keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        # shellcheck disable=SC2016 # $(REPO_URI) is apt's own syntax
        uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $codename" | sed -n 1p)
        [[ -n $uri ]] || { echo "vm: qemu-utils is from backports, but apt-get knows no $codename to find them beside" >&2; exit 1; }
        [[ ! -f $keyring ]] || key="[signed-by=$keyring]"
        echo "deb $key $uri $codename-backports main" | as_root tee "/etc/apt/sources.list.d/$codename-backports.list" >/dev/null
    fi
    echo "$codename-backports"
}

# Installs what is missing; silent where nothing is.
install_packages() {
    local pair missing=() from=()
    PATH=$PATH:/usr/sbin:/sbin
    for pair in "${NEEDED[@]}"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || { echo "vm: install these first: ${missing[*]}" >&2; exit 1; }
    echo "vm: installing ${missing[*]}"
    if [[ " ${missing[*]} " == *' qemu-system-x86 '* ]]; then
        local release; release=$(qemu_release)
        [[ -z $release ]] || from=(-t "$release")
    fi
    as_root apt-get update -qq
    # The other packages come from the release itself: -t would move them, and what they depend on, to backports.
    if ((${#from[@]})); then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${from[@]}" qemu-system-x86 >/dev/null
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${missing[@]}" >/dev/null
}
