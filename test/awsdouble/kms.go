// Package awsdouble has doubles of services of AWS that speak their wire protocols to the real SDK.
// It is for tests only, where no real service can be had, and models what the product relies on:
// answers, refusals and faults.
package awsdouble

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Credentials and region with which the doubles are asked.
const (
	AccessKeyID     = "AKIADOUBLE"
	SecretAccessKey = "double-secret"
	Region          = "eu-west-1"
	account         = "111122223333"
)

// KMS is a key management service on loopback. Its methods may be called concurrently.
type KMS struct {
	// URL is the endpoint.
	URL string

	mu      sync.Mutex
	keys    map[string]*kmsKey
	aliases map[string]string
	denied  map[string]bool
	calls   map[string]int
	// throttle is how many more requests are refused for being too many; delay is how long each takes.
	throttle int
	delay    time.Duration
	contexts []map[string]string
}

// kmsKey is a key with all its versions: what an older one has wrapped stays readable.
type kmsKey struct {
	versions [][]byte
	// state is "Enabled", "Disabled" or "PendingDeletion".
	state string
}

// StartKMS starts a service without keys. It ends with the test.
func StartKMS(t testing.TB) *KMS {
	t.Helper()
	k := &KMS{keys: map[string]*kmsKey{}, aliases: map[string]string{}, denied: map[string]bool{}, calls: map[string]int{}}
	s := httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(s.Close)
	k.URL = s.URL
	return k
}

// NewKey makes a key and returns its ARN.
func (k *KMS) NewKey() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	arn := fmt.Sprintf("arn:aws:kms:%s:%s:key/%08d-0000-4000-8000-000000000000", Region, account, len(k.keys)+1)
	k.keys[arn] = &kmsKey{versions: [][]byte{random(32)}, state: "Enabled"}
	return arn
}

// Alias gives a key another name, or gives that name to another key, and returns the alias's ARN.
func (k *KMS) Alias(name, key string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	arn := fmt.Sprintf("arn:aws:kms:%s:%s:alias/%s", Region, account, name)
	k.aliases[arn] = key
	return arn
}

// Rotate gives the key new material; the old stays for what it has wrapped.
func (k *KMS) Rotate(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[key].versions = append(k.keys[key].versions, random(32))
}

// SetState makes a key "Enabled", "Disabled" or "PendingDeletion".
func (k *KMS) SetState(key, state string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[key].state = state
}

// Delete removes a key for good.
func (k *KMS) Delete(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.keys, key)
}

// Deny takes the permission for an action ("kms:Decrypt") away, or gives it back.
func (k *KMS) Deny(action string, denied bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.denied[action] = denied
}

// Throttle refuses the next n requests for being too many.
func (k *KMS) Throttle(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.throttle = n
}

// Slow makes every request take so long.
func (k *KMS) Slow(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.delay = d
}

// Calls is how many requests of an operation ("Decrypt") were answered, refusals included.
func (k *KMS) Calls(operation string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[operation]
}

// Contexts are the encryption contexts of all requests so far.
func (k *KMS) Contexts() []map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]map[string]string(nil), k.contexts...)
}

// Setenv has the SDK of this process find credentials and region of the double.
func (k *KMS) Setenv(t testing.TB) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": AccessKeyID, "AWS_SECRET_ACCESS_KEY": SecretAccessKey, "AWS_SESSION_TOKEN": "",
		"AWS_REGION": Region, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		t.Setenv(name, value)
	}
}

type kmsRequest struct {
	KeyID             string            `json:"KeyId"`
	KeySpec           string            `json:"KeySpec"`
	CiphertextBlob    []byte            `json:"CiphertextBlob"`
	EncryptionContext map[string]string `json:"EncryptionContext"`
}

// kmsError is what the service refuses with.
type kmsError struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
	status  int
}

func refuse(kind, format string, args ...any) *kmsError {
	return &kmsError{Type: kind, Message: fmt.Sprintf(format, args...), status: http.StatusBadRequest}
}

func (k *KMS) serve(w http.ResponseWriter, r *http.Request) {
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	var req kmsRequest
	err := json.NewDecoder(r.Body).Decode(&req)
	k.mu.Lock()
	delay := k.delay
	k.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[operation]++
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var out any
	var bad *kmsError
	switch {
	case err != nil:
		bad = refuse("SerializationException", "%v", err)
	case !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+AccessKeyID+"/") ||
		!strings.Contains(r.Header.Get("Authorization"), "/"+Region+"/kms/aws4_request"):
		bad = refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	case k.throttle > 0:
		k.throttle--
		bad = refuse("ThrottlingException", "Rate exceeded")
	default:
		k.contexts = append(k.contexts, req.EncryptionContext)
		out, bad = k.answer(operation, req)
	}
	if bad != nil {
		w.WriteHeader(bad.status)
		out = bad
	}
	_ = json.NewEncoder(w).Encode(out)
}

// answer is called with mu held.
func (k *KMS) answer(operation string, req kmsRequest) (any, *kmsError) {
	arn := req.KeyID
	if of, ok := k.aliases[arn]; ok {
		arn = of
	}
	key := k.keys[arn]
	switch {
	case k.denied["kms:"+operation]:
		return nil, refuse("AccessDeniedException",
			"User: arn:aws:sts::%s:assumed-role/masters/i-1 is not authorized to perform: kms:%s on resource: %s because no identity-based policy allows the kms:%s action", account, operation, arn, operation)
	case key == nil:
		return nil, refuse("NotFoundException", "Key '%s' does not exist", req.KeyID)
	case key.state == "Disabled":
		return nil, refuse("DisabledException", "%s is disabled.", arn)
	case key.state != "Enabled":
		return nil, refuse("KMSInvalidStateException", "%s is pending deletion.", arn)
	}
	switch operation {
	case "GenerateDataKey":
		if req.KeySpec != "AES_256" {
			return nil, refuse("ValidationException", "KeySpec %q", req.KeySpec)
		}
		plain := random(32)
		return map[string]any{"KeyId": arn, "Plaintext": plain, "CiphertextBlob": key.wrap(arn, plain, req.EncryptionContext)}, nil
	case "Decrypt":
		plain, bad := key.unwrap(arn, req.CiphertextBlob, req.EncryptionContext)
		return map[string]any{"KeyId": arn, "Plaintext": plain, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, bad
	case "DescribeKey":
		return map[string]any{"KeyMetadata": map[string]any{"KeyId": arn[strings.LastIndexByte(arn, '/')+1:],
			"Arn": arn, "Enabled": true, "KeyState": key.state}}, nil
	}
	return nil, refuse("UnknownOperationException", "%s", operation)
}

// wrap makes version, length of the ARN, ARN, nonce and ciphertext of a key, bound to the context.
func (k *kmsKey) wrap(arn string, plain []byte, bound map[string]string) []byte {
	version := len(k.versions) - 1
	nonce := random(12)
	blob := append([]byte{byte(version), byte(len(arn))}, arn...)
	blob = append(blob, nonce...)
	return k.aead(version).Seal(blob, nonce, plain, additional(arn, bound))
}

func (k *kmsKey) unwrap(arn string, blob []byte, bound map[string]string) ([]byte, *kmsError) {
	if len(blob) < 2 || len(blob) < 2+int(blob[1])+12 || int(blob[0]) >= len(k.versions) {
		return nil, refuse("InvalidCiphertextException", "")
	}
	rest := blob[2+int(blob[1]):]
	if string(blob[2:2+int(blob[1])]) != arn {
		return nil, refuse("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
	}
	plain, err := k.aead(int(blob[0])).Open(nil, rest[:12], rest[12:], additional(arn, bound))
	if err != nil {
		return nil, refuse("InvalidCiphertextException", "")
	}
	return plain, nil
}

func (k *kmsKey) aead(version int) cipher.AEAD {
	block, err := aes.NewCipher(k.versions[version])
	if err != nil {
		panic(err) // the length is right
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// additional is the context in one order.
func additional(arn string, bound map[string]string) []byte {
	b, err := json.Marshal([]any{arn, bound})
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return b
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
