package database

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

// LeasesFile is the file beside a followed database that says what was told of its leases.
func LeasesFile(path string) string { return path + ".leases" }

// maxTold bounds how many leases are remembered: those that were granted last. More than a few minutes back nothing new is told of one.
const maxTold = 20000

// toldLease is what was told of one lease.
type toldLease struct {
	ID      int64 `json:"id"`
	From    int64 `json:"from"`
	Unknown bool  `json:"unknown,omitempty"`
}

// readTold reads what was told before; nothing if there is no file, or if it can't be read: then TTLs that are unknown stay so.
func readTold(path string) (map[int64]told, error) {
	leases := map[int64]told{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return leases, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is known of leases: %w", err)
	}
	var list []toldLease
	if json.Unmarshal(b, &list) != nil {
		return leases, nil
	}
	for _, l := range list {
		leases[l.ID] = told{from: l.From, unknown: l.Unknown}
	}
	return leases, nil
}

func writeTold(path string, leases map[int64]told) error {
	list := make([]toldLease, 0, len(leases))
	for id, t := range leases {
		list = append(list, toldLease{ID: id, From: t.from, Unknown: t.unknown})
	}
	slices.SortFunc(list, func(x, y toldLease) int { return cmp.Or(cmp.Compare(y.From, x.From), cmp.Compare(x.ID, y.ID)) })
	b, err := json.Marshal(list[:min(len(list), maxTold)])
	if err == nil {
		err = atomicfile.Write(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write what is known of leases: %w", err)
	}
	return nil
}
