package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/etcd-manager/etcd-manager/pkg/detect"
)

// place is a path that the sidecar will use, and what it is for the person.
type place struct {
	what, path string
	// file is false for a directory.
	file bool
}

// envFilePlace is the one file that is mounted by itself: it is written by a person, not renewed by a program.
const envFilePlace = "--env-file"

// places are all paths of the sidecar's, but for those that init chooses. p are the sidecar's own flags.
func (o *initOptions) places(e detect.Etcd, p options) []place {
	var list []place
	add := func(what, path string, file bool) {
		if path != "" {
			list = append(list, place{what, path, file})
		}
	}
	if withTLS(e) {
		add("etcd's CA", e.CA, true)
		add("the certificate", e.Cert, true)
		add("its key", e.Key, true)
	}
	add("--client-password-file", p.password, true)
	for _, s := range p.clientURLs {
		if path, ok := strings.CutPrefix(strings.TrimPrefix(s, "unixs://"), "unix://"); ok || strings.HasPrefix(s, "unixs://") {
			add("etcd's socket", path, true)
		}
	}
	for _, s := range p.identities {
		if !strings.HasPrefix(s, "aws-kms:") {
			add("--backup-identity", strings.TrimPrefix(s, "age:"), true)
		}
	}
	for _, s := range p.encryption {
		if path, ok := strings.CutPrefix(s, "age:"); ok && !strings.HasPrefix(path, "age1") {
			add("--backup-encryption", path, true)
		}
	}
	add(envFilePlace, o.envFile, true)
	add("--backup-store", storeDir(o.store), false)
	return list
}

// ours are the sidecar's flags that init sets, so that what it writes fits them.
func ours(flag string) bool {
	return strings.HasPrefix(flag, "client-") || slices.Contains([]string{"backup-store", "cluster-name", "data-dir", "env-file"}, flag)
}

// check refuses what a unit or a manifest can't hold, or what its program could not see.
func (o *initOptions) check(e detect.Etcd, form string, sidecar []string, p options) error {
	var errs []error
	for _, word := range o.more {
		if name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "="); strings.HasPrefix(word, "-") && ours(name) {
			errs = append(errs, fmt.Errorf("-- --%s: init sets this flag, so give it before the --, if init has it", name))
		}
	}
	for _, text := range append([]string{o.program, o.image, e.Unit}, sidecar...) {
		errs = append(errs, checkText(text))
	}
	list := o.places(e, p)
	switch form {
	case formUnit:
		errs = append(errs, checkUnit(append(list, place{"this program (--program)", o.program, true})))
		if strings.Contains(o.program, "$") {
			errs = append(errs, fmt.Errorf("--program=%s: systemd takes no $ in the path of a program", o.program))
		}
	default:
		errs = append(errs, checkPod(list))
	}
	return errors.Join(errs...)
}

// checkText refuses what no line of a unit, and no string of a manifest, can hold as it is.
func checkText(text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("%q isn't valid UTF-8: neither a unit nor a manifest can hold it", text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
		return fmt.Errorf("%q has a line break or a control character: neither a unit nor a manifest may hold it", text)
	}
	return nil
}

// checkPath refuses what isn't one exact place.
func checkPath(p place) error {
	if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != strings.TrimRight(p.path, "/") {
		return fmt.Errorf("%s: %s: want an absolute path without . and .., of a directory below /", p.what, p.path)
	}
	return nil
}

// below tells whether path is dir or something in it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// checkUnit refuses what the unit's limits hide from the program: ProtectHome, PrivateTmp and PrivateDevices.
func checkUnit(list []place) error {
	var errs []error
	for _, p := range list {
		if err := checkPath(p); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, dir := range []string{"/root", "/home", "/run/user", "/tmp", "/var/tmp", "/dev"} {
			if below(p.path, dir) {
				errs = append(errs, fmt.Errorf("%s: %s: the unit hides %s from the program; use a place elsewhere, such as %s", p.what, p.path, dir,
					map[bool]string{true: "/usr/local/bin for a program or /etc/etcd-manager for a file", false: "/var/backups/etcd"}[p.file]))
			}
		}
		errs = append(errs, checkStore(p))
	}
	return errors.Join(errs...)
}

// checkPod refuses what would lie over the image's own files.
func checkPod(list []place) error {
	var errs []error
	for _, p := range list {
		if err := checkPath(p); err != nil {
			errs = append(errs, err)
			continue
		}
		mounted := strings.TrimRight(p.path, "/")
		if p.file && p.what != envFilePlace {
			mounted = filepath.Dir(mounted)
		}
		if mounted == "/" {
			errs = append(errs, fmt.Errorf("%s: %s: want a file in a directory, because the pod mounts its directory", p.what, p.path))
		}
		if strings.Contains(p.path, ":") {
			errs = append(errs, fmt.Errorf("%s: %s: a path with a colon can't be mounted into a pod", p.what, p.path))
		}
		for _, dir := range []string{"/bin", "/dev", "/etcd-backup", "/etcd-manager", "/etcd-manager-ctl", "/go-runner", "/ko-app",
			"/proc", "/sys"} {
			if below(mounted, dir) {
				errs = append(errs, fmt.Errorf("%s: %s: the container has something of its own at %s; use a place elsewhere", p.what, p.path, dir))
			}
		}
		if mounted == "/tmp" {
			errs = append(errs, fmt.Errorf("%s: %s: the container has a /tmp of its own; use a place elsewhere", p.what, p.path))
		}
		errs = append(errs, checkStore(p))
	}
	return errors.Join(errs...)
}

// checkStore refuses a store that shares its directory with what waits for the store.
func checkStore(p place) error {
	if dir := strings.TrimRight(p.path, "/"); !p.file && (below(dir, dataDir) || below(dataDir, dir)) {
		return fmt.Errorf("%s: %s: changes wait for the store in %s, so the store must be elsewhere", p.what, p.path, dataDir)
	}
	return nil
}

// yamlString is a string in YAML, plain where nothing can take it for anything else.
func yamlString(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/.-_=:@,+", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	begins := regexp.MustCompile(`^(/|--[a-z]|[a-z][a-z-]*[-/:.])`)
	if plain && !strings.HasSuffix(s, ":") && begins.MatchString(s) {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// podWord is an argument in a pod, where $(NAME) means a variable.
func podWord(s string) string { return yamlString(strings.ReplaceAll(s, "$", "$$")) }

// unitWord is an argument on a unit's command line, where % and $ mean something.
func unitWord(s string) string { return unitPath(strings.ReplaceAll(s, "$", "$$")) }

// unitPath is a path, or another value, in a unit, where % means something and words are separated by spaces.
func unitPath(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if s == "" || strings.ContainsAny(s, " \t\"'\\;") {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}

// shellWord is a word for a shell.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/.-_=:@,+%", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func shellWords(list []string) string {
	var words []string
	for _, s := range list {
		words = append(words, shellWord(s))
	}
	return strings.Join(words, " ")
}
