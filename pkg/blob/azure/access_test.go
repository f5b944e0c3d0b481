package azure_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/azure"
	"github.com/etcd-manager/etcd-manager/test/azuredouble"
)

// All kinds of credentials open the store.
func TestCredentials(t *testing.T) {
	d := azuredouble.Start(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]azure.Credentials{
		"key":      {Key: d.Key},
		"SAS":      {SAS: "?" + d.SAS},
		"secret":   {TenantID: "t", ClientID: "c", ClientSecret: "good", AuthorityHost: d.AuthorityHost},
		"workload": {TenantID: "t", ClientID: "c", FederatedTokenFile: file, AuthorityHost: d.AuthorityHost + "/"},
		"machine":  {MetadataHost: d.MetadataHost},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, d, "with space/ü+"+name, func(cfg *azure.Config) { cfg.Credentials = c })
			r, err := blob.Probe(t.Context(), s, "node-a")
			if err != nil || !r.Fenced() {
				t.Errorf("Probe = %s, %v", r, err)
			}
			mustPut(s, t, "a key & more=1", []byte(name), blob.PutOptions{})
			wantContent(s, t, "a key & more=1", []byte(name))
		})
	}
}

// A token is kept, and one that the store refuses is fetched again: it may have ended early.
func TestTokenEnds(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", func(cfg *azure.Config) { cfg.Credentials = azure.Credentials{MetadataHost: d.MetadataHost} })
	one := mustPut(s, t, "k", []byte("1"), blob.PutOptions{IfAbsent: true})
	mustPut(s, t, "k", []byte("2"), blob.PutOptions{IfVersion: one.Version})
	if n := d.Issued(); n != 1 {
		t.Errorf("%d tokens", n)
	}
	d.Revoke()
	wantContent(s, t, "k", []byte("2"))
	if n := d.Issued(); n != 2 {
		t.Errorf("%d tokens", n)
	}
}

// Each refusal is told in the words of the one who has to end it, and shows no secret.
func TestRefusals(t *testing.T) {
	d := azuredouble.Start(t)
	refusal := func(status int, code string) func(http.ResponseWriter, *http.Request, http.Handler) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.Header().Set("X-Ms-Error-Code", code)
			w.WriteHeader(status)
			return true
		}
	}
	const role = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
	wrongSAS := azure.Credentials{SAS: "sig=secret"}
	wrong := base64.StdEncoding.EncodeToString([]byte("secret-secret"))
	for name, tt := range map[string]struct {
		change func(*azure.Config)
		answer func(http.ResponseWriter, *http.Request, http.Handler) bool
		kind   error
		say    string
	}{
		"wrong key": {change: func(c *azure.Config) { c.Credentials.Key = wrong }, kind: blob.ErrDenied, say: "the key or the SAS"},
		"wrong SAS": {change: func(c *azure.Config) { c.Credentials = wrongSAS }, kind: blob.ErrDenied, say: "the SAS token is wrong"},
		"container": {change: func(c *azure.Config) { c.Container = "other" }, kind: blob.ErrInvalid,
			say: `container "other" does not exist`},
		"no answer": {change: func(c *azure.Config) {
			c.Endpoint, c.Credentials = "http://127.0.0.1:1", wrongSAS
		}, kind: blob.ErrTransient},
		"role":        {answer: refusal(403, "AuthorizationPermissionMismatch"), kind: blob.ErrDenied, say: "needs " + role},
		"network":     {answer: refusal(403, "AuthorizationFailure"), kind: blob.ErrDenied, say: "a network rule"},
		"no keys":     {answer: refusal(403, "KeyBasedAuthenticationNotPermitted"), kind: blob.ErrDenied, say: "the account takes no keys"},
		"SAS type":    {answer: refusal(403, "AuthorizationResourceTypeMismatch"), kind: blob.ErrDenied, say: "srt=co"},
		"archived":    {answer: refusal(409, "BlobArchived"), kind: blob.ErrInvalid, say: "archive tier"},
		"busy":        {answer: refusal(503, "ServerBusy"), kind: blob.ErrTransient, say: "ServerBusy"},
		"bad request": {answer: refusal(400, "InvalidHeaderValue"), kind: blob.ErrInvalid, say: "InvalidHeaderValue"},
		"skew": {answer: func(w http.ResponseWriter, r *http.Request, p http.Handler) bool {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			return refusal(403, "AuthenticationFailed")(w, r, p)
		}, kind: blob.ErrDenied, say: "the right time: this machine's clock is 1h0m"},
	} {
		t.Run(name, func(t *testing.T) {
			d.Set(tt.answer)
			s := open(t, d, "main", tt.change)
			_, err := s.Stat(t.Context(), "k")
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.say) || errors.Is(err, blob.ErrNotFound) {
				t.Errorf("Stat = %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

// What is wrong with those who give out tokens is said.
func TestTokenSources(t *testing.T) {
	d := azuredouble.Start(t)
	release := make(chan struct{})
	defer close(release)
	host := func(handle http.HandlerFunc) string {
		srv := httptest.NewServer(handle)
		t.Cleanup(srv.Close)
		return strings.TrimPrefix(srv.URL, "http://")
	}
	for name, tt := range map[string]struct {
		c    azure.Credentials
		kind error
		say  string
	}{
		"hangs": {azure.Credentials{MetadataHost: host(func(http.ResponseWriter, *http.Request) { <-release })}, blob.ErrTransient, ""},
		"busy": {azure.Credentials{MetadataHost: host(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "later", http.StatusTooManyRequests)
		})},
			blob.ErrTransient, "later"},
		"no identity": {azure.Credentials{MetadataHost: host(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error": "invalid_request", "error_description": "Identity not found"}`)
		})}, blob.ErrDenied, "Identity not found"},
		"nobody": {azure.Credentials{MetadataHost: "127.0.0.1:1"}, blob.ErrDenied, "there are none in the variables (AZURE_STORAGE_KEY"},
		"secret": {azure.Credentials{TenantID: "t", ClientID: "c", ClientSecret: "bad", AuthorityHost: d.AuthorityHost},
			blob.ErrDenied, "AADSTS7000215"},
		"no file": {azure.Credentials{TenantID: "t", ClientID: "c", FederatedTokenFile: "/nowhere", AuthorityHost: d.AuthorityHost},
			blob.ErrDenied, "/nowhere"},
		"Entra ID is away": {azure.Credentials{TenantID: "t", ClientID: "c", ClientSecret: "x", AuthorityHost: "http://127.0.0.1:1"},
			blob.ErrTransient, "Entra ID"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, d, "main", func(cfg *azure.Config) { cfg.Credentials = tt.c })
			bounded := blob.WithTimeouts(s, blob.Timeouts{Small: time.Second})
			if _, err := bounded.Stat(t.Context(), "k"); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Stat = %v", err)
			}
		})
	}
}

// The probe names the permission that is missing.
func TestProbeNamesPermission(t *testing.T) {
	for _, missing := range []string{"write", "read", "delete"} {
		t.Run(missing, func(t *testing.T) {
			d := azuredouble.Start(t)
			d.Set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				needs := map[string]string{http.MethodPut: "write", http.MethodDelete: "delete"}[r.Method]
				if needs == "" {
					needs = "read"
				}
				if needs != missing {
					return false
				}
				w.Header().Set("X-Ms-Error-Code", "AuthorizationPermissionMismatch")
				w.WriteHeader(http.StatusForbidden)
				return true
			})
			r, err := blob.Probe(t.Context(), open(t, d, "main", nil), "node-a")
			want := "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/" + missing
			if err == nil || len(r.Missing) != 1 || r.Missing[0] != want {
				t.Errorf("Probe = %s, %v", r, err)
			}
		})
	}
}

// What can't be right is said before anything is sent.
func TestBadConfig(t *testing.T) {
	good := azure.Config{Account: "account", Container: "container", Credentials: azure.Credentials{SAS: "sig=secret"}}
	for name, change := range map[string]func(*azure.Config){
		"is not the name of a storage account": func(c *azure.Config) { c.Account = "My_Account" },
		"is not the name of a container":       func(c *azure.Config) { c.Container = "a" },
		"is not base64":                        func(c *azure.Config) { c.Credentials = azure.Credentials{Key: "secret!"} },
		"with a signature":                     func(c *azure.Config) { c.Credentials = azure.Credentials{SAS: "secret"} },
		"needs a tenant id and a client id":    func(c *azure.Config) { c.Credentials = azure.Credentials{ClientSecret: "secret"} },
		"is not an http or https URL":          func(c *azure.Config) { c.Endpoint = "ftp://x" },
		`part ".."`:                            func(c *azure.Config) { c.Prefix = "a/../b" },
	} {
		c := good
		change(&c)
		if _, err := azure.New(c); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret!") {
			t.Errorf("%s: New = %v", name, err)
		}
	}
	s, err := azure.New(good)
	if err != nil || s.String() != "azureblob://account/container" {
		t.Errorf("New = %v, %v", s, err)
	}
}
