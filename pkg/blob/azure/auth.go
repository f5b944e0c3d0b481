package azure

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// resource is what a token must be good for.
	resource = "https://storage.azure.com/"
	// defaultAuthority is where Entra ID gives out tokens, defaultMetadata the machine's metadata.
	defaultAuthority = "https://login.microsoftonline.com/"
	defaultMetadata  = "169.254.169.254"
	// tokenTimeout bounds one question for a token.
	tokenTimeout = 10 * time.Second
)

// Credentials say how requests are authorized: by the first of a key, a SAS token, a client's secret, a workload's federated token, and the
// machine's managed identity.
type Credentials struct {
	// Key is one of the account's keys, in base64.
	Key string
	// SAS is a shared access signature: the query of a URL, with or without "?".
	SAS string
	// TenantID and ClientID name an application; with ClientSecret or FederatedTokenFile it gets a token of Entra ID. Alone,
	// ClientID names one of several managed identities of the machine.
	TenantID, ClientID string
	// ClientSecret is the application's secret.
	ClientSecret string
	// FederatedTokenFile is a file with a token of Kubernetes, which is read again for each question (workload identity).
	FederatedTokenFile string
	// AuthorityHost is the URL of Entra ID; empty means that of the public cloud.
	AuthorityHost string
	// MetadataHost is the host of the machine's metadata; empty means Azure's.
	MetadataHost string
}

// use has the client authorize its requests.
func (c Credentials) use(client *rest.Client, account string) error {
	switch {
	case c.Key != "":
		key, err := base64.StdEncoding.DecodeString(c.Key)
		if err != nil {
			return fmt.Errorf("the account's key is not base64: %w", err)
		}
		client.Authorize = func(_ context.Context, req *http.Request) error {
			req.Header.Set("X-Ms-Date", time.Now().UTC().Format(http.TimeFormat))
			req.Header.Set("Authorization", "SharedKey "+account+":"+sign(key, account, req))
			return nil
		}
		return nil
	case c.SAS != "":
		q, err := url.ParseQuery(strings.TrimPrefix(c.SAS, "?"))
		if err != nil || q.Get("sig") == "" {
			return errors.New("the SAS token is not the query of a URL with a signature (sig=…)")
		}
		client.Authorize = func(_ context.Context, req *http.Request) error {
			all := req.URL.Query()
			for name, values := range q {
				all[name] = values
			}
			req.URL.RawQuery = all.Encode()
			return nil
		}
		return nil
	}
	tokens, err := c.tokens()
	if err != nil {
		return err
	}
	client.Refused = tokens.Forget
	client.Authorize = func(ctx context.Context, req *http.Request) error {
		token, err := tokens.Get(ctx)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
	return nil
}

// sign returns the signature of a request by an account's key.
// Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
func sign(key []byte, account string, req *http.Request) string {
	length := ""
	if req.ContentLength > 0 {
		length = strconv.FormatInt(req.ContentLength, 10)
	}
	h := req.Header.Get
	lines := []string{req.Method, h("Content-Encoding"), h("Content-Language"), length, h("Content-Md5"), h("Content-Type"), h("Date"),
		h("If-Modified-Since"), h("If-Match"), h("If-None-Match"), h("If-Unmodified-Since"), h("Range")}
	var extra []string
	for name, values := range req.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			extra = append(extra, name+":"+strings.Join(values, ","))
		}
	}
	slices.Sort(extra)
	lines = append(lines, extra...)
	lines = append(lines, "/"+account+req.URL.EscapedPath())
	var params []string
	for name, values := range req.URL.Query() {
		slices.Sort(values)
		params = append(params, strings.ToLower(name)+":"+strings.Join(values, ","))
	}
	slices.Sort(params)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(strings.Join(append(lines, params...), "\n")))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// tokens returns the source of tokens.
func (c Credentials) tokens() (*rest.Tokens, error) {
	if c.ClientSecret == "" && c.FederatedTokenFile == "" {
		host := cmp.Or(c.MetadataHost, defaultMetadata)
		q := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
		if c.ClientID != "" {
			q.Set("client_id", c.ClientID)
		}
		return &rest.Tokens{From: "the machine's managed identity at " + host,
			Fetch: identityToken("http://" + host + "/metadata/identity/oauth2/token?" + q.Encode())}, nil
	}
	if c.TenantID == "" || c.ClientID == "" {
		return nil, errors.New("a client secret, or a federated token file, needs a tenant id and a client id")
	}
	authority := strings.TrimSuffix(cmp.Or(c.AuthorityHost, defaultAuthority), "/")
	if !strings.Contains(authority, "://") {
		authority = "https://" + authority
	}
	client := rest.NewHTTP()
	from := "Entra ID at " + authority
	return &rest.Tokens{From: from, Fetch: func(ctx context.Context) (rest.Token, error) {
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.ClientID}, "scope": {resource + ".default"}}
		if c.ClientSecret != "" {
			form.Set("client_secret", c.ClientSecret)
		} else {
			data, err := os.ReadFile(c.FederatedTokenFile)
			if err != nil {
				return rest.Token{}, &rest.TokenError{Need: "the workload's token", Err: err}
			}
			form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
			form.Set("client_assertion", strings.TrimSpace(string(data)))
		}
		ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, authority+"/"+url.PathEscape(c.TenantID)+"/oauth2/v2.0/token",
			strings.NewReader(form.Encode()))
		if err != nil {
			return rest.Token{}, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := client.Do(req)
		if err != nil {
			return rest.Token{}, &rest.TokenError{Transient: true, Err: fmt.Errorf("ask %s: %w", from, err)}
		}
		return readToken(resp, from, "valid credentials: those of client "+c.ClientID+" are refused")
	}}, nil
}

// identityToken asks the machine's metadata, which is never behind a proxy.
// Source: https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
func identityToken(address string) func(ctx context.Context) (rest.Token, error) {
	client := &http.Client{
		Transport:     &http.Transport{DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	const need = "credentials: there are none in the variables (AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_SECRET, " +
		"AZURE_FEDERATED_TOKEN_FILE), and the machine gives none"
	return func(ctx context.Context) (rest.Token, error) {
		ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
		if err != nil {
			return rest.Token{}, err
		}
		req.Header.Set("Metadata", "true")
		resp, err := client.Do(req)
		if err != nil {
			// Elsewhere than on Azure's machines nobody is there. One who is there and doesn't answer may do so later.
			var op *net.OpError
			absent := errors.As(err, &op) && op.Op == "dial"
			return rest.Token{}, &rest.TokenError{Need: need, Transient: !absent, Err: fmt.Errorf("ask the machine's metadata: %w", err)}
		}
		return readToken(resp, "the machine's metadata", "a managed identity: this machine has none, or not the one of AZURE_CLIENT_ID")
	}
}

// seconds is a number, which the metadata has in quotes.
type seconds int64

func (s *seconds) UnmarshalJSON(data []byte) error {
	n, err := strconv.ParseInt(strings.Trim(string(data), `"`), 10, 64)
	*s = seconds(n)
	return err
}

func readToken(resp *http.Response, from, need string) (rest.Token, error) {
	data, err := rest.ReadAll(resp)
	if err != nil {
		return rest.Token{}, &rest.TokenError{Transient: true, Err: fmt.Errorf("ask %s: %w", from, err)}
	}
	var answer struct {
		Token       string  `json:"access_token"`
		Expires     seconds `json:"expires_in"`
		Description string  `json:"error_description"`
	}
	jerr := json.Unmarshal(data, &answer)
	if resp.StatusCode != http.StatusOK {
		se := &rest.StatusError{Op: "get a token", Status: resp.StatusCode, Header: resp.Header, At: time.Now()}
		if se.Message = answer.Description; jerr != nil {
			se.Message = strings.TrimSpace(string(data[:min(len(data), 200)]))
		}
		te := &rest.TokenError{Need: need, Transient: se.Transient() || se.Status == http.StatusGone,
			Err: fmt.Errorf("%s answers: %w", from, se)}
		if skew := se.Skew(); skew.Abs() > 4*time.Minute {
			te.Need = rest.RightTime(skew)
		}
		return rest.Token{}, te
	}
	if jerr != nil {
		return rest.Token{}, &rest.TokenError{Need: need, Err: fmt.Errorf("read the answer of %s: %w", from, jerr)}
	}
	return rest.Token{Value: answer.Token, Expires: time.Now().Add(time.Duration(answer.Expires) * time.Second)}, nil
}
