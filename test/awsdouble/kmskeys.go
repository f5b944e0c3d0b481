package awsdouble

import (
	"encoding/json"
	"net/http"
)

// Key is a key of KMS. State is Enabled, Disabled or PendingDeletion.
type Key struct{ ARN, State, Spec string }

// Keys answers DescribeKey of KMS, for keys by the names under which they are asked for: ids, aliases and ARNs.
func (c *Cloud) Keys(keys map[string]Key) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fail := func(code, message string) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": message})
		}
		action := r.Header.Get("X-Amz-Target")
		c.mu.Lock()
		c.calls = append(c.calls, action)
		denied := c.denied[action]
		c.mu.Unlock()
		var in struct{ KeyId string }
		switch err := json.NewDecoder(r.Body).Decode(&in); {
		case err != nil || action != "TrentService.DescribeKey":
			fail("UnknownOperationException", action)
		case denied:
			fail("AccessDeniedException", "User is not authorized to perform: kms:DescribeKey on this resource")
		case keys[in.KeyId].ARN == "":
			fail("NotFoundException", "Key '"+in.KeyId+"' does not exist")
		default:
			k := keys[in.KeyId]
			_ = json.NewEncoder(w).Encode(map[string]any{"KeyMetadata": map[string]any{"KeyId": k.ARN, "Arn": k.ARN,
				"KeyState": k.State, "KeySpec": k.Spec}})
		}
	})
}
