package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// ErrNoBinary means that a node has no etcd of the version that was asked for.
var ErrNoBinary = errors.New("no etcd binary")

// Subcommand is the manager's hidden subcommand that is etcd itself; see [EtcdCommand].
const Subcommand = "etcd"

// Binary says how to run one version of etcd.
type Binary struct {
	// Version is what the executable says that it is, for example "3.6.16", whatever its directory is called.
	Version string
	// Path is the executable.
	Path string
	// Args stand between the executable and etcd's flags.
	Args []string
	// Compiled is true for the etcd that is part of the manager.
	Compiled bool

	id exeID // of the file that was asked for its version; zero if none was
}

// Binaries finds etcd on a node. The zero value looks in /opt and has no compiled-in etcd.
// It is safe for concurrent use, and must not be copied.
type Binaries struct {
	// Roots are the directories that hold etcd-v<version>; nil means /opt.
	Roots []string
	// Self is the manager's own executable, which runs the compiled-in version; empty means not to use it.
	Self string

	asking sync.Mutex // held while an executable is asked for its version: one at a time
	mu     sync.Mutex // guards what follows
	said   map[exeID]answer
	alike  map[content]exeID
}

// Installed is what a node can run.
type Installed struct {
	// Versions are those that the executables say they are, ascending, without duplicates.
	Versions []string
	// Problems are directories whose executable isn't used, and why, sorted.
	Problems []string
}

func (b *Binaries) roots() []string {
	if b.Roots != nil {
		return b.Roots
	}
	return []string{"/opt"}
}

// places lists where the executable of a directory etcd-v<version> may be, best first.
func (b *Binaries) places(root, version string) []string {
	d := filepath.Join(root, "etcd-v"+version)
	return []string{filepath.Join(d, "etcd"), filepath.Join(d, "usr", "local", "bin", "etcd")}
}

// in returns what runs the etcd in a root's directory for a version: of whatever version of that minor it is. kOps gives the
// newest patch under the name of every older one.
func (b *Binaries) in(ctx context.Context, root, version string) (Binary, error) {
	if err := CheckRoot(root); err != nil {
		return Binary{}, err
	}
	err := fs.ErrNotExist
	for _, path := range b.places(root, version) {
		var bin Binary
		if bin, err = b.look(ctx, path); err == nil {
			return bin, checkNamed(bin, version)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return Binary{}, err
}

// checkNamed says why an executable isn't used from a directory of that version, if it isn't.
func checkNamed(bin Binary, version string) error {
	if err := etcd.ValidateVersion(bin.Version); err != nil {
		return fmt.Errorf("%s says what it is: %w", bin.Path, err)
	}
	if etcd.Minor(bin.Version) != etcd.Minor(version) {
		return fmt.Errorf("%s says that it is %s", bin.Path, bin.Version)
	}
	return nil
}

// look opens an executable and asks it for its version, once for each file.
func (b *Binaries) look(ctx context.Context, path string) (Binary, error) {
	f, id, err := openTrusted(path)
	if err != nil {
		return Binary{}, err
	}
	defer f.Close()
	version, err := b.version(ctx, path, f, id)
	return Binary{Version: version, Path: path, id: id}, err
}

// scanContext bounds how long executables are asked for their versions. It is no caller's context: what doesn't answer is remembered,
// and a caller that gives up must not make an executable count as one that can't be run.
func scanContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), scanTime)
}

// Find returns how to run exactly this version. An installed binary is preferred over the compiled-in
// etcd. The error wraps ErrNoBinary and names every place that was looked at, or ErrVersion if it is a
// version that is never run.
func (b *Binaries) Find(version string) (Binary, error) {
	if err := etcd.ValidateVersion(version); err != nil {
		return Binary{}, err
	}
	return b.find(version, "")
}

// find returns a version, from the directory of that name or from another one.
func (b *Binaries) find(version string, why string) (Binary, error) {
	ctx, cancel := scanContext()
	defer cancel()
	for _, root := range b.roots() {
		bin, err := b.in(ctx, root, version)
		if err == nil && bin.Version == version {
			return bin, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			why += fmt.Sprintf("; %v", err)
		}
	}
	if b.Self != "" && version == etcd.CompiledVersion {
		return Binary{Version: version, Path: b.Self, Args: []string{Subcommand}, Compiled: true}, nil
	}
	list, _ := b.scan(ctx)
	for _, bin := range list {
		if bin.Version == version {
			return bin, nil
		}
	}
	compiled := "there is no compiled-in etcd"
	if b.Self != "" {
		compiled = "the compiled-in etcd is " + etcd.CompiledVersion
	}
	have := "none is installed"
	if vs := b.versions(list); len(vs) > 0 {
		have = "this node can run " + strings.Join(vs, ", ")
	}
	var places []string
	for _, root := range b.roots() {
		places = append(places, b.places(root, version)...)
	}
	return Binary{}, fmt.Errorf("%w for version %s: looked for %s; %s; %s%s",
		ErrNoBinary, version, strings.Join(places, ", "), compiled, have, why)
}

// Nearest returns the version itself if it is there, else what is installed under its name, else the next higher patch of
// the same minor version, else the highest lower one. Asked for 3.5.0 to 3.5.2, which are never run, it returns a newer patch.
func (b *Binaries) Nearest(version string) (Binary, error) {
	if v, err := etcd.ParseVersion(version); err != nil || v.Unsafe() != "" && !v.Replaceable() {
		return Binary{}, errors.Join(etcd.ValidateVersion(version), err)
	}
	exact, err := b.find(version, "")
	if err == nil && etcd.ValidateVersion(version) == nil {
		return exact, nil
	}
	ctx, cancel := scanContext()
	defer cancel()
	for _, root := range b.roots() {
		if bin, err := b.in(ctx, root, version); err == nil {
			return bin, nil
		}
	}
	best := cluster.NearestVersion(version, b.Versions())
	if best == "" {
		return Binary{}, err
	}
	return b.find(best, "")
}

// Versions lists what this node can run, ascending, without duplicates.
func (b *Binaries) Versions() []string { return b.Installed().Versions }

// Installed looks at all executables. What takes longer than 10 s to say its version is looked at again the next time.
func (b *Binaries) Installed() Installed {
	ctx, cancel := scanContext()
	defer cancel()
	list, problems := b.scan(ctx)
	return Installed{Versions: b.versions(list), Problems: problems}
}

func (b *Binaries) versions(list []Binary) []string {
	var out []string
	for _, bin := range list {
		out = append(out, bin.Version)
	}
	if b.Self != "" {
		out = append(out, etcd.CompiledVersion)
	}
	slices.SortFunc(out, etcd.Compare)
	return slices.Compact(out)
}

// scan looks at every directory of every root.
func (b *Binaries) scan(ctx context.Context) (list []Binary, problems []string) {
	for _, root := range b.roots() {
		dirs, err := filepath.Glob(filepath.Join(root, "etcd-v*"))
		if err != nil {
			continue
		}
		for _, d := range dirs {
			named := strings.TrimPrefix(filepath.Base(d), "etcd-v")
			if v, err := etcd.ParseVersion(named); err != nil || v.Unsafe() != "" && !v.Replaceable() {
				continue
			}
			bin, err := b.in(ctx, root, named)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				problems = append(problems, err.Error())
			default:
				list = append(list, bin)
			}
		}
	}
	slices.Sort(problems)
	return list, slices.Compact(problems)
}

// EtcdCommand is the hidden subcommand that is etcd itself, the version CompiledVersion. Its arguments are etcd's flags alone. etcd may end the
// process by itself.
func EtcdCommand() child.Command {
	return child.Command{Name: Subcommand, Main: func(args []string) int {
		etcdmain.Main(append([]string{Subcommand}, args...))
		return 0
	}}
}
