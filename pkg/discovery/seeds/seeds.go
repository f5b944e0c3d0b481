// Package seeds finds the other managers in a directory that someone else keeps: one file for each node.
//
// The file's name is the node id. It holds the endpoints of the node's manager, in the order in
// which they are tried, as lines of host:port or as JSON: ["10.0.0.1:8000"] or
// {"endpoints":["10.0.0.1:8000"]}. Blank lines and lines that start with # mean nothing, and
// neither do files whose names start with a dot or end with ~ (what editors and configuration tools
// leave behind). The package only reads.
package seeds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// maxFile is far beyond any list of endpoints; it keeps a misplaced file from being read into memory.
const maxFile = 64 << 10

// Source is a directory of seeds. It may be used concurrently.
type Source struct {
	dir string
}

// New returns the source for a directory. The directory is read by Find only.
func New(dir string) *Source { return &Source{dir: dir} }

// Name returns "seeds" and the directory.
func (s *Source) Name() string { return "seeds " + s.dir }

// Publish does nothing: the directory belongs to whoever fills it.
func (s *Source) Publish(context.Context, []string) error { return nil }

// Interval says how often Find is worth calling whatever the state of the cluster: reading a directory costs next to nothing.
func (s *Source) Interval() time.Duration { return 5 * time.Second }

// Find reads the directory. A directory that can't be read is an error. Files that can't be understood are left out and named in the
// error, so that the nodes and an error can be returned together.
func (s *Source) Find(context.Context) (map[cluster.NodeID][]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read seeds directory: %w", err)
	}
	found := map[cluster.NodeID][]string{}
	var bad []error
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
			continue
		}
		path := filepath.Join(s.dir, name)
		// Stat follows links: a mounted ConfigMap consists of them.
		fi, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("read seed: %w", err))
			continue
		}
		if !fi.Mode().IsRegular() {
			continue
		}
		endpoints, err := readSeed(path, fi.Size())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		found[cluster.NodeID(name)] = endpoints
	}
	return found, errors.Join(bad...)
}

func readSeed(path string, size int64) ([]string, error) {
	if size > maxFile {
		return nil, fmt.Errorf("read seed %s: %d bytes are too many for a list of endpoints", path, size)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read seed: %w", err)
	}
	endpoints, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read seed %s: %w", path, err)
	}
	return endpoints, nil
}

// parse reads a seed in any of its forms.
func parse(data []byte) ([]string, error) {
	data = bytes.TrimSpace(data)
	var endpoints []string
	switch {
	case len(data) > 1 && data[0] == '[' && (data[1] == '"' || json.Valid(data)):
		if err := json.Unmarshal(data, &endpoints); err != nil {
			return nil, err
		}
	case len(data) > 0 && data[0] == '{':
		var record struct {
			Endpoints []string `json:"endpoints"`
		}
		if err := json.Unmarshal(data, &record); err != nil {
			return nil, err
		}
		endpoints = record.Endpoints
	default:
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				endpoints = append(endpoints, line)
			}
		}
	}
	if len(endpoints) == 0 {
		return nil, errors.New("it names no endpoint (host:port)")
	}
	for _, e := range endpoints {
		host, port, err := net.SplitHostPort(e)
		if err != nil {
			return nil, fmt.Errorf("endpoint %.200q is not host:port: %s", e, cluster.Shown(err.Error(), 200))
		}
		if n, err := strconv.Atoi(port); err != nil || host == "" || strings.ContainsAny(host, " \t/") || n < 1 || n > 65535 {
			return nil, fmt.Errorf("endpoint %.200q is not host:port", e)
		}
	}
	return endpoints, nil
}
