/* Included before a bucket's sources: constants come from heap memory of their exact size, so that
 * AddressSanitizer sees reads past their end. */
extern const unsigned char *driver_weights;
#define SPARSEC_WEIGHTS driver_weights
#define SPARSEC_WEIGHT(offset) (SPARSEC_WEIGHTS + (offset))
