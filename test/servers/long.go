package servers

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// LongBucket stands before an S3 server. It shows objects beside those that are stored, as many as a bucket has after years, and every
// request takes a while.
type LongBucket struct {
	// Keys are the objects that are made up, sorted, and Body is the content of each; nil is none. Modified is when they were stored.
	Keys     []string
	Body     func(key string) []byte
	Modified time.Time
	// Delay is how long each request takes, at least.
	Delay time.Duration
}

// listing is the answer to ListObjectsV2.
type listing struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name, Prefix          string
	KeyCount, MaxKeys     int
	IsTruncated           bool
	NextContinuationToken string                    `xml:",omitempty"`
	Contents              []listed                  `xml:",omitempty"`
	CommonPrefixes        []struct{ Prefix string } `xml:",omitempty"`
}

type listed struct {
	Key, LastModified, ETag string
	Size                    int64
	StorageClass            string
}

// Front returns the URL that clients are to use in place of the server's.
func (l *LongBucket) Front(t testing.TB, srv *S3) string {
	t.Helper()
	client := srv.Client()
	return Front(t, srv, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		select {
		case <-time.After(l.Delay):
		case <-r.Context().Done():
			return
		}
		key, ofBucket := strings.CutPrefix(r.URL.Path, "/"+srv.Bucket+"/")
		switch q := r.URL.Query(); {
		case r.Method == http.MethodGet && q.Get("list-type") == "2":
			l.list(w, r, client, srv.Bucket, q)
		case ofBucket && (r.Method == http.MethodGet || r.Method == http.MethodHead) && l.has(key):
			w.Header().Set("ETag", etag(key))
			w.Header().Set("Last-Modified", l.Modified.UTC().Format(http.TimeFormat))
			http.ServeContent(w, r, "", l.Modified, strings.NewReader(string(l.Body(key))))
		default:
			pass.ServeHTTP(w, r)
		}
	})
}

func etag(key string) string { return strconv.Quote(strconv.Itoa(len(key))) }

func (l *LongBucket) has(key string) bool {
	_, found := slices.BinarySearch(l.Keys, key)
	return found
}

// list answers a page of a listing.
func (l *LongBucket) list(w http.ResponseWriter, r *http.Request, client *awss3.Client, bucket string, q url.Values) {
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	out := listing{Name: bucket, Prefix: prefix, MaxKeys: 1000}
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		out.MaxKeys = min(n, out.MaxKeys)
	}
	var stored []listed
	pages := awss3.NewListObjectsV2Paginator(client, &awss3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		for _, o := range page.Contents {
			modified := o.LastModified.UTC().Format(time.RFC3339)
			stored = append(stored, listed{Key: *o.Key, LastModified: modified, ETag: *o.ETag, Size: *o.Size})
		}
	}
	// next is the first object after a key, or at it.
	next := func(from string, inclusive bool) (listed, bool) {
		i := sort.Search(len(l.Keys), func(i int) bool { return l.Keys[i] > from || inclusive && l.Keys[i] == from })
		j := sort.Search(len(stored), func(j int) bool { return stored[j].Key > from || inclusive && stored[j].Key == from })
		switch {
		case j < len(stored) && (i == len(l.Keys) || stored[j].Key < l.Keys[i]):
			return stored[j], true
		case i < len(l.Keys):
			return listed{Key: l.Keys[i], LastModified: l.Modified.UTC().Format(time.RFC3339), ETag: etag(l.Keys[i]), Size: 1}, true
		}
		return listed{}, false
	}
	from, inclusive := prefix, true
	if after >= prefix && after != "" {
		from, inclusive = after, false
		if delimiter != "" && strings.HasPrefix(after, prefix) && strings.HasSuffix(after, delimiter) {
			from = after + "\xff" // the common prefix was given already
		}
	}
	for {
		o, ok := next(from, inclusive)
		if !ok || !strings.HasPrefix(o.Key, prefix) {
			break
		}
		if out.KeyCount == out.MaxKeys {
			out.IsTruncated = true
			break
		}
		out.KeyCount++
		inclusive = false
		if i := strings.Index(o.Key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			common := o.Key[:len(prefix)+i+len(delimiter)]
			out.CommonPrefixes = append(out.CommonPrefixes, struct{ Prefix string }{common})
			out.NextContinuationToken, from = common, common+"\xff"
			continue
		}
		o.StorageClass = "STANDARD"
		out.Contents = append(out.Contents, o)
		out.NextContinuationToken, from = o.Key, o.Key
	}
	if !out.IsTruncated {
		out.NextContinuationToken = ""
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(out)
}
