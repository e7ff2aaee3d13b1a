# Sourced by the scripts beside it: what they all need to know about where they are and who runs them.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$(cd "$repo" && realpath -m "${CARGO_TARGET_DIR:-target}")
default_images=${COFFERDAM_TEST_IMAGES:-$target/test-images}

say() { printf '== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "must run as root: sudo $0"
}

# Rust is the one thing that setup does not install. Under sudo it usually lies in the home of who called sudo, outside
# root's PATH; rustup's proxies then need to be told where that toolchain is.
find_cargo() {
    command -v cargo >/dev/null && return
    local home
    for home in "$HOME" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"; do
        [ -x "$home/.cargo/bin/cargo" ] || continue
        export PATH="$home/.cargo/bin:$PATH"
        export CARGO_HOME="${CARGO_HOME:-$home/.cargo}"
        [ ! -d "$home/.rustup" ] || export RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
        return
    done
    die "cargo is not there: install Rust ($(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$repo/Cargo.toml") or newer), then run this again"
}

# What a build under sudo wrote belongs to who called sudo, or their next `cargo build` would be refused.
# The test images stay root's: their trees carry owners that mean something.
hand_back() {
    [ -n "${SUDO_UID:-}" ] && [ "$SUDO_UID" != 0 ] || return 0
    local dir
    for dir in "$target" "${CARGO_HOME:-}"; do
        [ -d "$dir" ] || continue
        find "$dir" -xdev -path "$default_images" -prune -o -user root -exec chown -h "$SUDO_UID:$SUDO_GID" {} + || true
    done
}
