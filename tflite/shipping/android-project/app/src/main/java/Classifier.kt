package {{ package }}

import android.content.Context
import android.graphics.Bitmap
import android.graphics.RectF
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.components.containers.Category
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.ImageProcessingOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier

/**
 * The model in assets/[MODEL], which carries its labels and takes the pixels as they are.
 *
 * To be used on one thread.
 */
class Classifier(context: Context) : AutoCloseable {
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifier.ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(MODEL).build())
            .setMaxResults(MOST_RESULTS)
            .build(),
    )

    /**
     * The likeliest classes of the picture's middle, best first: the part that was evaluated.
     *
     * @param bitmap ARGB_8888, of any size.
     * @param rotationDegrees how far it has to be turned to stand upright, a multiple of 90.
     */
    fun classify(bitmap: Bitmap, rotationDegrees: Int): List<Category> {
{% if squash %}
        val width = Math.rint(bitmap.width * CROP)
        val height = Math.rint(bitmap.height * CROP)
{% else %}
        val width = Math.rint(minOf(bitmap.width, bitmap.height) * CROP)
        val height = width
{% endif %}
        val left = Math.rint((bitmap.width - width) / 2)
        val top = Math.rint((bitmap.height - height) / 2)
        val options = ImageProcessingOptions.builder()
            .setRegionOfInterest(
                RectF(
                    (left / bitmap.width).toFloat(),
                    (top / bitmap.height).toFloat(),
                    ((left + width) / bitmap.width).toFloat(),
                    ((top + height) / bitmap.height).toFloat(),
                ),
            )
            .setRotationDegrees(rotationDegrees)
            .build()
        val result = classifier.classify(BitmapImageBuilder(bitmap).build(), options)
        return result.classificationResult().classifications()[0].categories()
    }

    override fun close() = classifier.close()

    private companion object {
        const val MODEL = "model.tflite"
        const val MOST_RESULTS = 3

        /** The share of the side that was evaluated. */
        const val CROP = {{ crop }}
    }
}
