package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // the formats register themselves
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// pack is what one package holds beside its program.
type pack struct {
	name, description string
	unit, env         string // of the service, if it has one
	recommends        []string
}

var packs = []pack{
	{name: "etcd-manager", description: "forms, keeps, backs up and restores an etcd cluster\nThe daemon that runs on every master beside etcd.",
		unit: "etcd-manager.service", env: "env", recommends: []string{"etcd-manager-ctl"}},
	{name: "etcd-backup", description: "backs up an etcd that something else runs\nThe sidecar: backups, and every change between them, in an object store.",
		unit: "etcd-backup.service", env: "backup-env", recommends: []string{"etcd-manager-ctl"}},
	{name: "etcd-manager-ctl", description: "shows and restores what etcd-manager and etcd-backup keep\nThe operator's tool. It needs the backup store only."},
}

// packages makes .deb and .rpm.
func (r *release) packages() error {
	for _, p := range packs {
		for _, arch := range architectures {
			for _, format := range []string{"deb", "rpm"} {
				if err := r.pack(p, arch, format); err != nil {
					return fmt.Errorf("%s for %s as %s: %w", p.name, arch, format, err)
				}
			}
		}
	}
	return nil
}

// pack makes one package.
func (r *release) pack(p pack, arch, format string) (err error) {
	contents, err := r.files(p, arch)
	if err != nil {
		return err
	}
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: p.name, Arch: arch, Platform: "linux", Version: r.pkg, VersionSchema: "none", Release: "1", Section: "admin", Priority: "optional",
		Maintainer: "The etcd-manager authors <etcd-manager@users.noreply.github.com>", Description: p.description,
		Homepage: "https://github.com/etcd-manager/etcd-manager", License: "Apache-2.0", MTime: r.date, DisableGlobbing: true,
		Overridables: nfpm.Overridables{Contents: contents, Recommends: p.recommends, Umask: 0o022,
			RPM: nfpm.RPM{BuildHost: "localhost", Compression: "gzip:9"}, Deb: nfpm.Deb{Compression: "gzip:9"}},
	})
	if p.unit != "" {
		script := func(name string) string { return filepath.Join(r.root, "contrib/packages", p.name+"."+name) }
		info.Scripts = nfpm.Scripts{PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm")}
	}
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return err
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	path := filepath.Join(r.out, "packages", packager.ConventionalFileName(info))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return packager.Package(info, f)
}

// files are what a package installs. All belong to root.
func (r *release) files(p pack, arch string) (files.Contents, error) {
	var list files.Contents
	add := func(from, to, kind string, mode fs.FileMode) {
		list = append(list, &files.Content{Source: from, Destination: to, Type: kind,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.date}})
	}
	add(r.binary(p.name, arch), "/usr/bin/"+p.name, "", 0o755)
	if p.unit != "" {
		add(filepath.Join(r.out, "systemd", p.unit), "/usr/lib/systemd/system/"+p.unit, "", 0o644)
		// It may hold credentials.
		add(filepath.Join(r.out, "config", p.env), "/etc/etcd-manager/"+p.env, "config|noreplace", 0o600)
	}
	add(filepath.Join(r.out, "LICENSE"), "/usr/share/doc/"+p.name+"/copyright", "", 0o644)
	add(filepath.Join(r.out, "THIRD-PARTY-LICENSES"), "/usr/share/doc/"+p.name+"/THIRD-PARTY-LICENSES", "", 0o644)
	pages, err := filepath.Glob(filepath.Join(r.out, "man", p.name+"*"))
	if err != nil {
		return nil, err
	}
	for _, page := range pages {
		name := filepath.Base(page)
		if p.name == "etcd-manager" && strings.HasPrefix(name, "etcd-manager-ctl") {
			continue
		}
		section := strings.TrimSuffix(name, ".gz")
		add(page, "/usr/share/man/man"+section[len(section)-1:]+"/"+name, "", 0o644)
	}
	if p.name == "etcd-manager-ctl" {
		add(filepath.Join(r.out, "completions/bash/etcd-manager-ctl"), "/usr/share/bash-completion/completions/etcd-manager-ctl", "", 0o644)
		add(filepath.Join(r.out, "completions/zsh/_etcd-manager-ctl"), "/usr/share/zsh/vendor-completions/_etcd-manager-ctl", "", 0o644)
		add(filepath.Join(r.out, "completions/fish/etcd-manager-ctl.fish"), "/usr/share/fish/vendor_completions.d/etcd-manager-ctl.fish", "", 0o644)
	}
	return list, nil
}
