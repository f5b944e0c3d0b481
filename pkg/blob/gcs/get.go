package gcs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// markField is the name of our mark in an object's metadata.
const markField = "etcd-manager-put"

// object is what the API says of an object.
type object struct {
	Name       string            `json:"name"`
	Size       int64             `json:"size,string"`
	Generation string            `json:"generation"`
	Created    time.Time         `json:"timeCreated"`
	CRC32C     string            `json:"crc32c"`
	Metadata   map[string]string `json:"metadata"`
	// What keeps it from being deleted.
	RetainedUntil time.Time `json:"retentionExpirationTime"`
	TemporaryHold bool      `json:"temporaryHold"`
	EventHold     bool      `json:"eventBasedHold"`
}

// objectFields are the fields that are asked for of a single object.
const objectFields = "name,size,generation,timeCreated,crc32c,metadata"

func (o object) info(key string) blob.Info {
	return blob.Info{Key: key, Size: o.Size, Version: o.Generation, Modified: o.Created}
}

// crcTable is that of CRC32C.
func crcTable() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// encodeCRC writes a checksum as the API does: base64 of four bytes, the highest first.
func encodeCRC(sum uint32) string {
	return base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// Stat implements blob.Store. An object that is absent looks denied to those who may not list the bucket.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := blob.CheckKey(key); err != nil {
		return blob.Info{}, s.invalid("stat", key, err)
	}
	o, err := s.stat(ctx, key)
	if rest.Status(err) == http.StatusNotFound {
		return blob.Info{}, s.absent(ctx, "stat", key, err)
	}
	if err != nil {
		return blob.Info{}, s.fail(ctx, "stat", permGet, key, err)
	}
	return o.info(key), nil
}

// stat returns errors of the client, unwrapped.
func (s *Store) stat(ctx context.Context, key string) (object, error) {
	resp, err := s.client.Do(ctx, call(permGet, http.MethodGet, s.object(key, url.Values{"fields": {objectFields}})))
	if err != nil {
		return object{}, err
	}
	return readObject(resp)
}

func readObject(resp *http.Response) (object, error) {
	data, err := rest.ReadAll(resp)
	if err != nil {
		return object{}, err
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		return object{}, fmt.Errorf("read the description of an object: %w", err)
	}
	if o.Generation == "" {
		return object{}, fmt.Errorf("the description of an object has no generation (status %s)", resp.Status)
	}
	return o, nil
}

// Get implements blob.Store. The checksum is compared at the end of a whole read.
func (s *Store) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := blob.CheckGet(key, r); err != nil {
		return nil, blob.Info{}, s.invalid("get", key, err)
	}
	return s.get(ctx, key, r)
}

func (s *Store) get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	req := call(permGet, http.MethodGet, s.object(key, url.Values{"alt": {"media"}}))
	if h := r.Header(); h != "" {
		req.Header.Set("Range", h)
	}
	resp, err := s.client.Do(ctx, req)
	switch status := rest.Status(err); {
	case status == http.StatusRequestedRangeNotSatisfiable && r.Offset == 0:
		return s.get(ctx, key, blob.Range{}) // The object is empty.
	case status == http.StatusNotFound:
		return nil, blob.Info{}, s.absent(ctx, "get", key, err)
	case err != nil:
		return nil, blob.Info{}, s.fail(ctx, "get", permGet, key, err)
	}
	info := blob.Info{Key: key, Size: resp.ContentLength, Version: resp.Header.Get("X-Goog-Generation")}
	if t, terr := http.ParseTime(resp.Header.Get("Last-Modified")); terr == nil {
		info.Modified = t
	}
	left := info.Size
	switch {
	case req.Header.Get("Range") != "" && (resp.StatusCode == http.StatusPartialContent || info.Size > 0):
		info.Size, left, err = blob.CheckContentRange(resp.Header.Get("Content-Range"), r)
	case info.Size < 0:
		err = fmt.Errorf("the answer has no length")
	case info.Version == "":
		err = fmt.Errorf("the answer has no generation")
	}
	if err != nil {
		resp.Body.Close()
		return nil, blob.Info{}, s.fail(ctx, "get", permGet, key, err)
	}
	reader := &rest.Reader{Body: resp.Body, Left: left, Fail: func(err error) error { return s.fail(ctx, "get", permGet, key, err) }}
	if want := crcOf(resp.Header); want != nil && left == info.Size {
		reader.Sum, reader.Want = crc32.New(crcTable()), want
	}
	return reader, info, nil
}

// crcOf finds the object's checksum in the header of a download: "X-Goog-Hash: crc32c=AAAAAA==,md5=…", in one line or several.
func crcOf(header http.Header) []byte {
	for _, line := range header.Values("X-Goog-Hash") {
		for field := range strings.SplitSeq(line, ",") {
			if value, ok := strings.CutPrefix(strings.TrimSpace(field), "crc32c="); ok {
				if sum, err := base64.StdEncoding.DecodeString(value); err == nil && len(sum) == crc32.Size {
					return sum
				}
			}
		}
	}
	return nil
}

// generation makes a condition of a version; false if no object can have it.
func generation(version string) (string, bool) {
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n <= 0 {
		return "", false
	}
	return strconv.FormatInt(n, 10), true
}
