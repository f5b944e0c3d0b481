package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ErrNoBinary means that a node has no etcd of the version that was asked for.
var ErrNoBinary = errors.New("no etcd binary")

// Subcommand is the manager's hidden subcommand that is etcd itself; see [Main].
const Subcommand = "etcd"

// Binary says how to run one version of etcd.
type Binary struct {
	// Version is the full version, for example "3.6.16".
	Version string
	// Path is the executable.
	Path string
	// Args stand between the executable and etcd's flags.
	Args []string
	// Compiled is true for the etcd that is part of the manager.
	Compiled bool
}

// Binaries finds etcd on a node. The zero value looks in the usual places and has no compiled-in etcd.
// It is safe for concurrent use.
type Binaries struct {
	// Roots are the directories that hold etcd-v<version>; nil means /opt and /tmp.
	Roots []string
	// Self is the manager's own executable, which runs the compiled-in version; empty means not to use it.
	Self string
}

func (b *Binaries) roots() []string {
	if b.Roots != nil {
		return b.Roots
	}
	return []string{"/opt", "/tmp"}
}

// places lists where the executable of a version may be, best first.
func (b *Binaries) places(version string) []string {
	var out []string
	for _, r := range b.roots() {
		d := filepath.Join(r, "etcd-v"+version)
		out = append(out, filepath.Join(d, "etcd"), filepath.Join(d, "usr", "local", "bin", "etcd"))
	}
	return out
}

func isExecutable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// Find returns how to run exactly this version. An installed binary is preferred over the compiled-in
// etcd. The error wraps ErrNoBinary and names every place that was looked at, or ErrVersion if it is a
// version that is never run.
func (b *Binaries) Find(version string) (Binary, error) {
	if err := ValidateVersion(version); err != nil {
		return Binary{}, err
	}
	places := b.places(version)
	for _, p := range places {
		if isExecutable(p) {
			return Binary{Version: version, Path: p}, nil
		}
	}
	if b.Self != "" && version == CompiledVersion {
		return Binary{Version: version, Path: b.Self, Args: []string{Subcommand}, Compiled: true}, nil
	}
	compiled := "there is no compiled-in etcd"
	if b.Self != "" {
		compiled = "the compiled-in etcd is " + CompiledVersion
	}
	have := "none is installed"
	if vs := b.Versions(); len(vs) > 0 {
		have = "this node can run " + strings.Join(vs, ", ")
	}
	return Binary{}, fmt.Errorf("%w for version %s: looked for %s; %s; %s",
		ErrNoBinary, version, strings.Join(places, ", "), compiled, have)
}

// Nearest returns the version itself if it is there, else the next higher patch of the same minor
// version, else the highest lower one.
func (b *Binaries) Nearest(version string) (Binary, error) {
	exact, err := b.Find(version)
	if err == nil {
		return exact, nil
	}
	best := cluster.NearestVersion(version, b.Versions())
	if best == "" {
		return Binary{}, err
	}
	return b.Find(best)
}

// Versions lists what this node can run, ascending, without duplicates.
func (b *Binaries) Versions() []string {
	var out []string
	for _, r := range b.roots() {
		dirs, err := filepath.Glob(filepath.Join(r, "etcd-v*"))
		if err != nil {
			continue
		}
		for _, d := range dirs {
			v := strings.TrimPrefix(filepath.Base(d), "etcd-v")
			if ValidateVersion(v) != nil {
				continue
			}
			if slices.ContainsFunc(b.places(v), isExecutable) {
				out = append(out, v)
			}
		}
	}
	if b.Self != "" {
		out = append(out, CompiledVersion)
	}
	slices.SortFunc(out, Compare)
	return slices.Compact(out)
}

// Main is etcd itself, the version CompiledVersion. args are etcd's flags alone. It returns only when
// etcd has ended, and etcd may end the process by itself: it is for a process of its own.
func Main(args []string) {
	etcdmain.Main(append([]string{Subcommand}, args...))
}

// Prove runs the executable for its version, which tells whether it is one for this machine at all. The error wraps ErrNoBinary.
func (b Binary) Prove(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, b.Path, append(slices.Clone(b.Args), "--version")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w for version %s: %s can't be run: %w", ErrNoBinary, b.Version, b.Path, err)
	}
	if !strings.Contains(string(out), b.Version) {
		first, _, _ := strings.Cut(string(out), "\n")
		return fmt.Errorf("%w for version %s: %s says that it is %q", ErrNoBinary, b.Version, b.Path, first)
	}
	return nil
}
