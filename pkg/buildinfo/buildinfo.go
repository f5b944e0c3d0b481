// Package buildinfo says which build of the project a program is: its version, and the commit and the time of it, as Go's linker has
// noted them in the program.
package buildinfo

import (
	"fmt"
	"runtime/debug"
	"strings"
)

// Info describes a build. What isn't known is empty: a build outside a git checkout has no commit.
type Info struct {
	Version string `json:"version"`
	// Commit is the git commit, Date its time as RFC 3339 in UTC. Modified is true if files differed from the commit.
	Commit   string `json:"commit,omitempty"`
	Date     string `json:"date,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	// Go is the version of the compiler.
	Go string `json:"go,omitempty"`
}

// Read describes this program. linked is the version that the linker was given (-X main.version=…); if it is empty, the version is what
// Go knows of the module, or "(devel)".
func Read(linked string) Info {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		b = &debug.BuildInfo{}
	}
	return from(linked, b)
}

func from(linked string, b *debug.BuildInfo) Info {
	i := Info{Version: linked, Go: b.GoVersion}
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			i.Commit = s.Value
		case "vcs.time":
			i.Date = s.Value
		case "vcs.modified":
			i.Modified = s.Value == "true"
		}
	}
	if i.Version == "" {
		i.Version = b.Main.Version
	}
	if i.Version == "" {
		i.Version = "(devel)"
	}
	return i
}

// String is all of it on one line, for people: "v1.2.3, commit 0123456789ab of 2026-01-02T03:04:05Z, built with go1.25.0".
func (i Info) String() string {
	parts := []string{i.Version}
	if i.Commit != "" {
		commit := "commit " + i.Commit[:min(12, len(i.Commit))]
		if i.Date != "" {
			commit += " of " + i.Date
		}
		if i.Modified {
			commit += " with changes"
		}
		parts = append(parts, commit)
	}
	if i.Go != "" {
		parts = append(parts, fmt.Sprintf("built with %s", i.Go))
	}
	return strings.Join(parts, ", ")
}
