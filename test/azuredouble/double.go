// Package azuredouble stands in for Azure Blob Storage in tests: exactly the calls that etcd-manager makes, over HTTP, with their
// conditions, block lists, conflicts and codes of errors. It also gives out the tokens of a managed identity and of Entra ID. What
// a test wants to see go wrong is switched on by Set.
//
// It is for tests only. README.md says where each behavior was taken from, and where the double is simpler than Azure.
package azuredouble

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Double is one storage account with one container. Make one with Start; it ends with the test.
type Double struct {
	// Endpoint is the account's URL, MetadataHost the host of the machine's metadata, and AuthorityHost the URL of Entra ID.
	Endpoint, MetadataHost, AuthorityHost string
	// Account and Container are their names, Key the account's key in base64.
	Account, Container, Key string
	// SAS is a shared access signature that is good for everything.
	SAS string

	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool
	blobs  map[string]*blob
	etag   int64
	// versioned accounts keep what is replaced and deleted.
	versioned bool
	// tokens are those that are good, issued counts them.
	tokens map[string]bool
	issued int
	// protected blobs have an immutability policy.
	protected map[string]time.Time
}

// blob is what is stored under a name: the version that readers see, if there is one, old ones, and blocks that are in no list yet.
type blob struct {
	current *version
	old     []*version
	blocks  map[string][]byte
}

type version struct {
	id, etag string
	data     []byte
	md5      string
	modified time.Time
	meta     map[string]string
}

// Start starts a double with an empty container.
func Start(t testing.TB) *Double {
	t.Helper()
	key := sha256.Sum256([]byte(rand.Text()))
	d := &Double{Account: "testaccount", Container: "backups", Key: base64.StdEncoding.EncodeToString(key[:]),
		SAS:   "sv=2021-12-02&sig=" + rand.Text(),
		blobs: map[string]*blob{}, tokens: map[string]bool{}, protected: map[string]time.Time{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		answer := d.answer
		d.mu.Unlock()
		if answer == nil || !answer(w, r, http.HandlerFunc(d.serve)) {
			d.serve(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	d.Endpoint = srv.URL
	d.MetadataHost, d.AuthorityHost = strings.TrimPrefix(srv.URL, "http://"), srv.URL
	return d
}

// Set has answer asked first from now on: true says that it has answered. nil lets everything through.
func (d *Double) Set(answer func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = answer
}

// KeepVersions has the account keep what is replaced and deleted.
func (d *Double) KeepVersions() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.versioned = true
}

// Protect keeps a blob, named with its prefix, from being replaced and deleted.
func (d *Double) Protect(name string, until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.protected[name] = until
}

// Revoke ends all tokens that were given out.
func (d *Double) Revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.tokens)
}

// Issued is the number of tokens that were given out.
func (d *Double) Issued() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.issued
}

// Stored is the number of versions and of blocks that the account keeps in all.
func (d *Double) Stored() (versions, blocks int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.blobs {
		if b.current != nil {
			versions++
		}
		versions += len(b.old)
		blocks += len(b.blocks)
	}
	return versions, blocks
}

// fail answers as the service does: the code is in a header, too, which is all that there is for HEAD.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Ms-Error-Code", code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s
RequestId:00000000-0000-0000-0000-000000000000
Time:%s</Message></Error>`, code, message, time.Now().UTC().Format(time.RFC3339))
}

// serve answers one request of the store, or one for a token.
func (d *Double) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // The client broke off; nothing is stored.
	}
	d.mu.Lock()
	data := d.locked(w, r, body)
	d.mu.Unlock()
	_, _ = w.Write(data) // A client that reads slowly keeps nobody else waiting; one that is gone needs no answer.
}

// locked does what is asked for, and returns the rest of the answer.
func (d *Double) locked(w http.ResponseWriter, r *http.Request, body []byte) []byte {
	switch {
	case r.URL.Path == "/metadata/identity/oauth2/token":
		d.identity(w, r)
		return nil
	case strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token"):
		d.entra(w, r, body)
		return nil
	}
	if !d.authorized(w, r) {
		return nil
	}
	if r.Header.Get("X-Ms-Version") == "" {
		fail(w, http.StatusBadRequest, "MissingRequiredHeader", "x-ms-version")
		return nil
	}
	container, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if container != d.Container {
		fail(w, http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
		return nil
	}
	if sum := r.Header.Get("Content-Md5"); sum != "" && sum != checksum(body) {
		fail(w, http.StatusBadRequest, "Md5Mismatch", "The MD5 value specified in the request did not match.")
		return nil
	}
	comp := r.URL.Query().Get("comp")
	switch {
	case name == "" && r.Method == http.MethodGet && comp == "list":
		d.list(w, r)
	case r.Method == http.MethodPut && comp == "":
		d.put(w, r, name, body)
	case r.Method == http.MethodPut && comp == "block":
		d.putBlock(w, r, name, body)
	case r.Method == http.MethodPut && comp == "blocklist":
		d.putBlockList(w, r, name, body)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return d.get(w, r, name)
	case r.Method == http.MethodDelete:
		d.delete(w, r, name)
	default:
		fail(w, http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.")
	}
	return nil
}

func checksum(data []byte) string {
	sum := md5.Sum(data)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// authorized checks the key's signature, the SAS token or the bearer token.
func (d *Double) authorized(w http.ResponseWriter, r *http.Request) bool {
	auth := r.Header.Get("Authorization")
	switch {
	case strings.HasPrefix(auth, "SharedKey "):
		date, err := http.ParseTime(r.Header.Get("X-Ms-Date"))
		if err != nil || time.Since(date).Abs() > 15*time.Minute || auth != "SharedKey "+d.Account+":"+d.signature(r) {
			fail(w, http.StatusForbidden, "AuthenticationFailed", "Server failed to authenticate the request.")
			return false
		}
	case strings.HasPrefix(auth, "Bearer "):
		if !d.tokens[strings.TrimPrefix(auth, "Bearer ")] {
			w.Header().Set("Www-Authenticate", "Bearer authorization_uri=x resource_id=https://storage.azure.com")
			fail(w, http.StatusUnauthorized, "InvalidAuthenticationInfo", "Lifetime validation failed. The token is expired.")
			return false
		}
	case r.URL.Query().Get("sig") == "" || !strings.HasSuffix(d.SAS, r.URL.Query().Get("sig")):
		fail(w, http.StatusForbidden, "AuthenticationFailed", "Signature did not match.")
		return false
	}
	return true
}

// signature computes what a client has to send, in the order that the documentation gives.
func (d *Double) signature(r *http.Request) string {
	var b strings.Builder
	length := r.Header.Get("Content-Length")
	if length == "" && r.ContentLength > 0 {
		length = strconv.FormatInt(r.ContentLength, 10)
	}
	if length == "0" {
		length = "" // since version 2015-02-21
	}
	b.WriteString(r.Method + "\n")
	for _, name := range []string{"Content-Encoding", "Content-Language"} {
		b.WriteString(r.Header.Get(name) + "\n")
	}
	b.WriteString(length + "\n")
	for _, name := range []string{"Content-MD5", "Content-Type", "Date", "If-Modified-Since", "If-Match", "If-None-Match",
		"If-Unmodified-Since",
		"Range"} {
		b.WriteString(r.Header.Get(name) + "\n")
	}
	var names []string
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Ms-") {
			names = append(names, strings.ToLower(name))
		}
	}
	sort.Strings(names)
	for _, name := range names {
		b.WriteString(name + ":" + r.Header.Get(name) + "\n")
	}
	b.WriteString("/" + d.Account + r.URL.EscapedPath())
	query := r.URL.Query()
	names = names[:0]
	for name := range query {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		b.WriteString("\n" + name + ":" + query.Get(name))
	}
	key, err := base64.StdEncoding.DecodeString(d.Key)
	if err != nil {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(b.String()))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (d *Double) issue() string {
	d.issued++
	token := rand.Text()
	d.tokens[token] = true
	return token
}

// identity is the machine's metadata.
func (d *Double) identity(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("resource") != "https://storage.azure.com/" {
		http.Error(w, `{"error": "invalid_request", "error_description": "Required metadata header not specified"}`, http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, `{"access_token": %q, "expires_in": "86399", "resource": "https://storage.azure.com/", "token_type": "Bearer"}`,
		d.issue())
}

// entra is Entra ID: it knows one secret and one federated token.
func (d *Double) entra(w http.ResponseWriter, r *http.Request, body []byte) {
	form := string(body)
	good := strings.Contains(form, "client_secret=good") || strings.Contains(form, "client_assertion=good")
	if !good || r.Method != http.MethodPost || !strings.Contains(form, "scope=https%3A%2F%2Fstorage.azure.com%2F.default") {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}`)
		return
	}
	fmt.Fprintf(w, `{"access_token": %q, "expires_in": 3599, "token_type": "Bearer"}`, d.issue())
}
