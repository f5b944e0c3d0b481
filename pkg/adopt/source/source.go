// Package source reads how an etcd is run: by a static pod's manifest, a unit of systemd, or its flags. It asks and changes nothing.
package source

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ErrSource: what says how etcd is run can't be read, or says something that can't be continued.
var ErrSource = errors.New("etcd's settings can't be taken over")

// Source is what an etcd is run with.
type Source struct {
	// Values are etcd's settings by the names of its flags.
	Values map[string]string
	// Stop are the commands by which an operator stops that etcd for good.
	Stop []string
	// Manifest is the static pod's, if it is one; Unit systemd's.
	Manifest, Unit string
}

// pod is the part of a static pod's manifest that concerns its etcd.
type pod struct {
	Kind string `json:"kind"`
	Spec struct {
		Containers []struct {
			Name    string   `json:"name"`
			Command []string `json:"command"`
			Args    []string `json:"args"`
			Env     []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"env"`
			VolumeMounts []struct {
				Name      string `json:"name"`
				MountPath string `json:"mountPath"`
			} `json:"volumeMounts"`
		} `json:"containers"`
		Volumes []struct {
			Name     string `json:"name"`
			HostPath *struct {
				Path string `json:"path"`
			} `json:"hostPath"`
		} `json:"volumes"`
	} `json:"spec"`
}

// FromManifest reads the manifest of a static pod, as kubeadm writes it. Paths are given as they are on the host.
func FromManifest(path string) (*Source, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	var p pod
	if err := yaml.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("read the manifest %s: %s", path, cluster.Shown(err.Error(), 300))
	}
	for _, c := range p.Spec.Containers {
		command := append(slices.Clone(c.Command), c.Args...)
		if len(command) == 0 || filepath.Base(command[0]) != "etcd" {
			continue
		}
		env := map[string]string{}
		for _, e := range c.Env {
			env[e.Name] = e.Value
		}
		s, err := fromCommand(path, command, env)
		if err != nil {
			return nil, err
		}
		mounts := map[string]string{}
		for _, m := range c.VolumeMounts {
			for _, v := range p.Spec.Volumes {
				if v.Name == m.Name && v.HostPath != nil {
					mounts[filepath.Clean(m.MountPath)] = v.HostPath.Path
				}
			}
		}
		for name, value := range s.Values {
			if strings.HasPrefix(value, "/") {
				s.Values[name] = onHost(value, mounts)
			}
		}
		if s.Manifest, err = filepath.Abs(path); err != nil {
			return nil, fmt.Errorf("find the manifest: %w", err)
		}
		s.Stop = []string{fmt.Sprintf("mv %s /etc/kubernetes/%s.before-etcd-manager", s.Manifest, filepath.Base(path))}
		return s, nil
	}
	return nil, fmt.Errorf("%s has no container whose command is etcd: %w", path, ErrSource)
}

// onHost translates a container's path by the longest mount that it lies in.
func onHost(path string, mounts map[string]string) string {
	for _, m := range slices.Backward(slices.Sorted(maps.Keys(mounts))) {
		if rest, ok := strings.CutPrefix(path, m); ok && (rest == "" || rest[0] == '/') {
			return mounts[m] + rest
		}
	}
	return path
}

// UnitPaths are where systemd looks for units, best first.
func UnitPaths() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
		"/usr/lib/systemd/system", "/lib/systemd/system"}
}

// FromUnit reads a unit of systemd with its drop-ins: a path, or a name that is looked for in the directories.
func FromUnit(unit string, dirs []string) (*Source, error) { return FromUnitAt("", unit, dirs) }

// FromUnitAt is FromUnit for a machine whose files lie below root. The directories are that machine's, as are all paths in what it returns.
func FromUnitAt(root, unit string, dirs []string) (*Source, error) {
	dirs = slices.Clone(dirs)
	for i, dir := range dirs {
		dirs[i] = filepath.Join(root, dir)
	}
	path, name := unit, filepath.Base(unit)
	if !strings.Contains(unit, "/") {
		if !strings.HasSuffix(name, ".service") {
			name += ".service"
		}
		for _, dir := range dirs {
			path = filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				break
			}
		}
	}
	files := []string{path}
	if !strings.Contains(unit, "/") {
		for _, dir := range slices.Backward(dirs) {
			more, err := filepath.Glob(filepath.Join(dir, name+".d", "*.conf"))
			if err != nil {
				return nil, fmt.Errorf("look for drop-ins of %s: %w", unit, err)
			}
			files = append(files, more...)
		}
	} else if more, err := filepath.Glob(path + ".d/*.conf"); err == nil {
		files = append(files, more...)
	}
	u := unitFile{root: root, name: name, env: map[string]string{}}
	for _, f := range files {
		if err := u.read(f); err != nil {
			return nil, fmt.Errorf("read the unit %s: %w", unit, err)
		}
	}
	if err := u.readEnvironmentFiles(); err != nil {
		return nil, fmt.Errorf("read the unit %s: %w", unit, err)
	}
	command, err := words(strings.TrimLeft(u.exec, "@-:+!"))
	if err != nil {
		return nil, fmt.Errorf("%s: ExecStart: %w", path, err)
	}
	if command, err = u.expand(command); err != nil {
		return nil, fmt.Errorf("%s: ExecStart: %w", path, err)
	}
	s, err := fromCommand(path, command, u.env)
	if err != nil {
		return nil, err
	}
	s.Unit = strings.TrimSuffix(name, ".service")
	s.Stop = []string{"systemctl disable --now " + s.Unit}
	return s, nil
}

// unitFile gathers what a unit and its drop-ins say.
type unitFile struct {
	root  string
	name  string
	exec  string
	env   map[string]string
	files []string
}

func (u *unitFile) read(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(string(data), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "[Service]" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "ExecStart":
			u.exec = value
		case "EnvironmentFile":
			u.files = append(u.files, value)
			if value == "" {
				u.files = nil
			}
		case "Environment":
			list, err := words(value)
			if err != nil {
				return fmt.Errorf("%s: Environment: %w", path, err)
			}
			for _, kv := range list {
				k, v, _ := strings.Cut(kv, "=")
				u.env[k] = v
			}
		}
	}
	return nil
}

// readEnvironmentFiles reads what wins over Environment. One with a dash before its name may be absent.
func (u *unitFile) readEnvironmentFiles() error {
	for _, f := range u.files {
		path, optional := strings.CutPrefix(f, "-")
		path = u.specifiers(path)
		data, err := os.ReadFile(filepath.Join(u.root, path))
		if errors.Is(err, fs.ErrNotExist) && optional {
			continue
		}
		if err != nil {
			return err
		}
		s := bufio.NewScanner(bytes.NewReader(data))
		for s.Scan() {
			line := strings.TrimSpace(s.Text())
			k, v, ok := strings.Cut(line, "=")
			if !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			u.env[strings.TrimSpace(k)] = unquote(strings.TrimSpace(v))
		}
		if err := s.Err(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// specifiers puts in what systemd knows of the unit's name; Debian's unit of etcd has its settings in a file with that name.
func (u *unitFile) specifiers(s string) string {
	prefix := strings.TrimSuffix(u.name, ".service")
	return strings.NewReplacer("%%", "%", "%p", prefix, "%N", prefix, "%n", u.name).Replace(s)
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// expand puts in the variables: $NAME alone is several words, ${NAME} part of one.
func (u *unitFile) expand(command []string) ([]string, error) {
	var list []string
	left := maxCommand
	value := func(k string) string {
		v := u.env[k]
		if left -= len(v); left < 0 {
			return ""
		}
		return v
	}
	for _, w := range command {
		if name, ok := strings.CutPrefix(w, "$"); ok && !strings.HasPrefix(name, "{") {
			list = append(list, strings.Fields(value(name))...)
			continue
		}
		list = append(list, os.Expand(w, value))
	}
	if left < 0 {
		return nil, fmt.Errorf("with its variables put in it is longer than %d bytes: %w", maxCommand, ErrSource)
	}
	return list, nil
}

// maxCommand bounds what a command line becomes when its variables are put in, in bytes.
const maxCommand = 256 << 10

// words splits as systemd does, for what unit files of etcd have: blanks, and quotes around words or parts of them.
func words(s string) ([]string, error) {
	var list []string
	var word strings.Builder
	var quote rune
	in := false
	for _, c := range s {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				list = append(list, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote isn't closed in %.200q: %w", s, ErrSource)
	}
	if in {
		list = append(list, word.String())
	}
	return list, nil
}

// FromConfigFile reads a configuration file of etcd, whose settings have the names of flags but for those of TLS.
func FromConfigFile(path string) (*Source, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read etcd's configuration: %w", err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("read etcd's configuration %s: %s", path, cluster.Shown(err.Error(), 300))
	}
	s := &Source{Values: map[string]string{}}
	s.take("", all)
	for section, prefix := range map[string]string{"client-transport-security": "", "peer-transport-security": "peer-"} {
		if m, ok := all[section].(map[string]any); ok {
			s.take(prefix, m)
		}
	}
	return s, nil
}

// take takes over what is a value, or a list of them.
func (s *Source) take(prefix string, settings map[string]any) {
	for k, v := range settings {
		switch v := v.(type) {
		case string, bool, float64, int64:
			s.Values[prefix+k] = fmt.Sprint(v)
		case []any:
			var list []string
			for _, x := range v {
				list = append(list, fmt.Sprint(x))
			}
			s.Values[prefix+k] = strings.Join(list, ",")
		}
	}
}

// FromFlags takes etcd's own flags.
func FromFlags(flags []string) (*Source, error) {
	s, err := fromCommand("the command line", append([]string{"etcd"}, flags...), nil)
	if err != nil {
		return nil, err
	}
	s.Stop = []string{"(stop that etcd, and make sure that nothing starts it again)"}
	return s, nil
}

// fromCommand reads a command line of etcd and its environment; flags win.
func fromCommand(where string, command []string, env map[string]string) (*Source, error) {
	if len(command) == 0 || filepath.Base(command[0]) != "etcd" {
		return nil, fmt.Errorf("%s doesn't start etcd itself but %s; give etcd's own flags: etcd-manager adopt [flags] -- --name=NAME --data-dir=DIR ...: %w", where,
			cluster.Shown(fmt.Sprintf("%q", command), 300), ErrSource)
	}
	s := &Source{Values: map[string]string{}}
	for k, v := range env {
		if name, ok := strings.CutPrefix(k, "ETCD_"); ok && v != "" {
			s.Values[strings.ReplaceAll(strings.ToLower(name), "_", "-")] = v
		}
	}
	for i := 1; i < len(command); i++ {
		w := command[i]
		name, value, given := strings.Cut(strings.TrimLeft(w, "-"), "=")
		switch {
		case !strings.HasPrefix(w, "-") || name == "":
			return nil, fmt.Errorf("%s: %.60q is no flag of etcd: %w", where, w, ErrSource)
		case given:
		case i+1 < len(command) && !strings.HasPrefix(command[i+1], "-"):
			i++
			value = command[i]
		default:
			value = "true"
		}
		s.Values[name] = value
	}
	return s, nil
}
