package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	modules "golang.org/x/mod/module"
)

// module is a library in at least one of the programs.
type module struct {
	path, version string
	// license is its name in SPDX, or NOASSERTION; text is that of all its files about that.
	license, text string
	in            []string // programs
}

// known are licenses by words that no other one has.
var known = []struct{ name, words string }{
	{"Apache-2.0", `Apache License,? Version 2\.0`},
	{"MPL-2.0", `Mozilla Public License,? [Vv]ersion 2\.0`},
	{"BSD-3-Clause", `Redistribution and use in source and binary forms.*([Nn]either the name|The name of).*(endorse|contributors)`},
	{"BSD-2-Clause", `Redistribution and use in source and binary forms`},
	{"ISC", `Permission to use, copy, modify, and/?(or)? distribute this software`},
	{"Unlicense", `This is free and unencumbered software released into the public domain`},
	{"MIT", `Permission is hereby granted, free of charge, to any person obtaining a copy`},
}

// licenses reads the libraries' licenses: what is in the programs is what they say of themselves.
func (r *release) licenses() error {
	goroot, err := r.command(nil, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	cache, err := r.command(nil, "go", "env", "GOMODCACHE")
	if err != nil {
		return err
	}
	goroot, cache = strings.TrimSpace(goroot), strings.TrimSpace(cache)
	found := map[string]*module{}
	add := func(program, path, version, dir string) error {
		m := found[path+"@"+version]
		if m == nil {
			m = &module{path: path, version: version}
			if err := m.read(dir); err != nil {
				return err
			}
			found[path+"@"+version] = m
		}
		if !slices.Contains(m.in, program) {
			m.in = append(m.in, program)
		}
		return nil
	}
	for _, program := range programs {
		for _, arch := range architectures {
			info, err := buildinfo.ReadFile(r.binary(program, arch))
			if err != nil {
				return err
			}
			if err := add(program, "stdlib", strings.TrimPrefix(info.GoVersion, "go"), goroot); err != nil {
				return err
			}
			for _, dep := range info.Deps {
				dir, err := cached(cache, dep)
				if err != nil {
					return err
				}
				if err := add(program, dep.Path, dep.Version, dir); err != nil {
					return err
				}
			}
		}
	}
	var text bytes.Buffer
	for _, m := range found {
		r.modules = append(r.modules, *m)
	}
	slices.SortFunc(r.modules, func(a, b module) int { return strings.Compare(a.path+"@"+a.version, b.path+"@"+b.version) })
	for _, m := range r.modules {
		fmt.Fprintf(&text, "==== %s %s (%s)\n\n%s\n", m.path, m.version, m.license, m.text)
	}
	own, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return err
	}
	return errorsOf(write(filepath.Join(r.out, "LICENSE"), own, 0o644), write(filepath.Join(r.out, "THIRD-PARTY-LICENSES"), text.Bytes(), 0o644))
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// cached is where a module's files lie.
func cached(cache string, dep *debug.Module) (string, error) {
	if dep.Replace != nil {
		dep = dep.Replace
	}
	path, err := modules.EscapePath(dep.Path)
	if err != nil {
		return "", err
	}
	version, err := modules.EscapeVersion(dep.Version)
	return filepath.Join(cache, filepath.FromSlash(path)+"@"+version), err
}

// read reads what a module says of its license. One that says nothing isn't released.
func (m *module) read(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	files := regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|notice|patents)([.-].*)?$`)
	for _, e := range entries {
		if !e.Type().IsRegular() || !files.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		m.text += string(text) + "\n"
	}
	if m.text == "" {
		return fmt.Errorf("%s %s has no license file in %s", m.path, m.version, dir)
	}
	words := strings.Join(strings.Fields(m.text), " ") // lines are broken elsewhere in each
	for _, k := range known {
		if m.license == "" && regexp.MustCompile(k.words).MatchString(words) {
			m.license = k.name
		}
	}
	if m.license == "" {
		m.license = "NOASSERTION"
	}
	return nil
}

// The parts of SPDX 2.3 that are needed.
type (
	document struct {
		Version       string         `json:"spdxVersion"`
		DataLicense   string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []spdxPackage  `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID        string      `json:"SPDXID"`
		Name      string      `json:"name"`
		Version   string      `json:"versionInfo"`
		Supplier  string      `json:"supplier"`
		Download  string      `json:"downloadLocation"`
		Analyzed  bool        `json:"filesAnalyzed"`
		Concluded string      `json:"licenseConcluded"`
		Declared  string      `json:"licenseDeclared"`
		Copyright string      `json:"copyrightText"`
		Purpose   string      `json:"primaryPackagePurpose,omitempty"`
		Checksums []checksum  `json:"checksums,omitempty"`
		Refs      []reference `json:"externalRefs,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Kind string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// id is a name within a document, where few characters may stand.
func id(parts ...string) string {
	return "SPDXRef-" + regexp.MustCompile(`[^A-Za-z0-9.-]+`).ReplaceAllString(strings.Join(parts, "-"), "-")
}

// contents writes the SBOM: each program of each architecture, and the libraries in it.
func (r *release) contents() error {
	d := document{Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "etcd-manager-" + r.pkg,
		Creation: creation{r.date.Format(time.RFC3339), []string{"Tool: etcd-manager-release"}}}
	hash := sha256.New()
	for _, program := range programs {
		for _, arch := range architectures {
			data, err := os.ReadFile(r.binary(program, arch))
			if err != nil {
				return err
			}
			sum := fmt.Sprintf("%x", sha256.Sum256(data))
			hash.Write([]byte(sum))
			name := id(program, arch)
			d.Packages = append(d.Packages, spdxPackage{ID: name, Name: program + " for linux-" + arch, Version: r.program, Supplier: "NOASSERTION",
				Download: "NOASSERTION", Concluded: "Apache-2.0", Declared: "Apache-2.0", Copyright: "NOASSERTION", Purpose: "APPLICATION",
				Checksums: []checksum{{"SHA256", sum}}})
			d.Relationships = append(d.Relationships, relationship{d.ID, "DESCRIBES", name})
			for _, m := range r.modules {
				if slices.Contains(m.in, program) {
					d.Relationships = append(d.Relationships, relationship{name, "DEPENDS_ON", id(m.path, m.version)})
				}
			}
		}
	}
	for _, m := range r.modules {
		p := spdxPackage{ID: id(m.path, m.version), Name: m.path, Version: m.version, Supplier: "NOASSERTION", Download: "NOASSERTION",
			Concluded: "NOASSERTION", Declared: m.license, Copyright: "NOASSERTION", Purpose: "LIBRARY"}
		p.Refs = []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(m.path) + "@" + m.version}}
		d.Packages = append(d.Packages, p)
	}
	d.Namespace = fmt.Sprintf("https://github.com/etcd-manager/etcd-manager/spdx/%s-%x", r.program, hash.Sum(nil)[:16])
	text, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return err
	}
	return write(filepath.Join(r.out, "etcd-manager.spdx.json"), append(text, '\n'), 0o644)
}
